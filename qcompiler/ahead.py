"""What a compile needs of the float model in the end, done beside its passes."""

from __future__ import annotations

import concurrent.futures
import contextlib

import onnx_ir as ir

from qcompiler.artifact import model_bytes
from qcompiler.pipeline.contract import State
from qcompiler.report.assemble import text_digest
from qcompiler.verify.check import host_fits
from qcompiler.verify.float_session import FloatSession, file_of

__all__ = ["Ahead"]

_LARGE = 1 << 28  # bytes of weights: a larger model is not in memory twice while passes run


class Ahead(contextlib.ExitStack):
    """Begins at once; leaving it waits for what has begun and drops it.

    Only for a model in a file, and not a large one. What fails does so where it is asked for.

    Attributes:
        session: For verification; None when it is to open its own.
    """

    def __init__(
        self, model: ir.Model, source: str, state: State, threads: int | None, *, page: bool
    ) -> None:
        """Begin.

        Args:
            model: The user's float model; left as it is.
            source: Path of its file, or another name.
            state: Its target and recipe.
            threads: Intra-op threads of the session; None is the runtime's default.
            page: Whether a report is going to be written.
        """
        super().__init__()
        self.session: FloatSession | None = None
        self._model = model
        self._digest: concurrent.futures.Future[str] | None = None
        path = file_of(source)
        if path is None or model_bytes(model) > _LARGE:
            return
        # one thread: the passes have the other core
        thread = concurrent.futures.ThreadPoolExecutor(1)
        if state.recipe.verify.enabled and state.target.runtime == "onnxruntime":
            profiled = host_fits(state.target)
            self.session = FloatSession(path, thread, threads=threads, profiled=profiled)
            self.callback(self.session.close)
        self._digest = thread.submit(text_digest, model.clone())
        if page:
            thread.submit(_prepare_page)
        self.enter_context(thread)

    def digest(self) -> str:
        """Of the model, for the manifest."""
        return text_digest(self._model) if self._digest is None else self._digest.result()


def _prepare_page() -> None:
    from qcompiler.report.page import page_template

    page_template()

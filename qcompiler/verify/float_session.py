"""The float model as its user would run it, opened while others work."""

from __future__ import annotations

import concurrent.futures
import pathlib
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.scratch import Scratch

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["FloatSession", "file_of"]


class FloatSession:
    """A session with default options that opens in another thread.

    Loading reads and packs all weights on one core and needs nothing that a compile makes.
    """

    def __init__(
        self,
        model: ir.Model | pathlib.Path,
        beside: concurrent.futures.Executor,
        *,
        threads: int | None,
        profiled: bool,
    ) -> None:
        """Begin to open.

        Args:
            model: The float model or its file. A model must be left alone until :meth:`get`.
            beside: Opens it; to be shut down before :meth:`close`.
            threads: Intra-op threads; None is the runtime's default.
            profiled: Turn the runtime's profiler on, see :mod:`qcompiler.runtime.profile`.
        """
        self._scratch: Scratch | None = None
        self._opening = beside.submit(self._open, model, threads, profiled)

    def _open(
        self, model: ir.Model | pathlib.Path, threads: int | None, profiled: bool
    ) -> ort.InferenceSession:
        from qcompiler.runtime.session import open_session

        trace = None
        if profiled:
            self._scratch = Scratch()
            trace = self._scratch.folder / "float"
        return open_session(model, threads=threads, profile=trace, code=Code.FLOAT_MODEL_FAILS)

    def get(self) -> ort.InferenceSession:
        """The open session; the same each time.

        Raises:
            QcError: QC607, the runtime refuses the model.
        """
        return self._opening.result()

    def close(self) -> None:
        """Remove what the profiler wrote."""
        if self._scratch is not None:
            self._scratch.remove()


def file_of(source: str) -> pathlib.Path | None:
    """The ONNX file that a model came from, if it did."""
    path = pathlib.Path(source)
    return path if path.suffix == ".onnx" and path.is_file() else None

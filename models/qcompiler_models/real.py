"""What every real model offers."""

from __future__ import annotations

import abc
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Array", "Feed", "RealModel", "Run", "run_onnx"]

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Run = Callable[[Feed], Mapping[str, Array]]


class RealModel(abc.ABC):
    """A published model with data to calibrate it on, feeds to time it with, and a score.

    Attributes:
        name: What ``load_model`` calls it.
        description: One sentence.
        licence: SPDX expression of the weights.
        source: The package the weights come from.
        recipe: What to compile it with: the name of a recipe, or its keys.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    licence: ClassVar[str]
    source: ClassVar[str]
    recipe: ClassVar[str | Mapping[str, Any]] = "static-int8"

    @abc.abstractmethod
    def onnx(self) -> pathlib.Path:
        """The float model as one ONNX file, made or fetched at first use and cached."""

    @abc.abstractmethod
    def calibration(self, n: int = 64) -> list[Feed]:
        """Feeds with ``n`` samples in all, none of which ``score`` uses."""

    @abc.abstractmethod
    def bench_feeds(self) -> dict[str, Feed]:
        """Feeds to time the model with, by name of their size."""

    def score(
        self, run: Run, reference: Run | None = None, limit: int | None = None
    ) -> dict[str, float]:
        """How good ``run`` is, and how near to ``reference``.

        Args:
            run: The model to judge: a feed in, outputs by name out.
            reference: What to compare it with; the float model in ONNX Runtime when None.
            limit: Use at most this many samples of each kind, for a quick look.

        Returns:
            Measures by name, as the class of the model tells. The same calls give the same
            numbers.
        """
        found = self._measure(run, limit)
        wanted = (
            self._float_measure(limit) if reference is None else self._measure(reference, limit)
        )
        return self._compare(found, wanted)

    @abc.abstractmethod
    def _measure(self, run: Run, limit: int | None) -> dict[str, Any]:
        """What ``_compare`` needs to know of one model: outputs, texts read, and so on."""

    @abc.abstractmethod
    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
        """The score, of what ``_measure`` gave for the judged model and for its reference."""

    def _float_measure(self, limit: int | None) -> dict[str, Any]:
        """``_measure`` of the float model, computed once."""
        if limit not in self._float_measures:
            self._float_measures[limit] = self._measure(self.float_run, limit)
        return self._float_measures[limit]

    @functools.cached_property
    def _float_measures(self) -> dict[int | None, dict[str, Any]]:
        return {}

    def torch(self) -> tuple[nn.Module, dict[str, Any] | tuple[Any, ...]]:
        """The model as a torch module in evaluation mode, and example inputs.

        Raises:
            NotImplementedError: If the model is published as ONNX only.
        """
        raise NotImplementedError(f"{self.name} is published as ONNX only; use onnx()")

    def folder(self) -> pathlib.Path:
        """The model as a transformers folder, tokenizer included.

        Raises:
            NotImplementedError: If it has none.
        """
        raise NotImplementedError(f"{self.name} has no transformers folder; use onnx()")

    @functools.cached_property
    def float_run(self) -> Run:
        """The float model in ONNX Runtime."""
        return run_onnx(self.onnx())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def run_onnx(path: pathlib.Path | str, threads: int = 2) -> Run:
    """A callable that feeds an ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The model.
        threads: Threads within an operator. Fixed, so that results do not hang on the machine.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; an unused initializer is not worth a line
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> Mapping[str, Array]:
        return dict(zip(names, session.run(names, feed), strict=True))

    return run

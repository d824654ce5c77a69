"""Run and time small models against one another, in one process, without letting them disturb."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.walk import op_name
from qcompiler.runtime.session import open_session
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.probe_layers import Array

__all__ = ["Case", "Measurement", "compute", "operators", "time_cases"]

# Threads of an idle session would go on spinning and take the processor from the one measured.
_CALM = {"session.force_spinning_stop": "1"}
_WARM_UP = 2
_AT_LEAST = 3  # runs per round


class Case:
    """A model bound to its inputs and outputs, ready to run again and again."""

    def __init__(
        self, model: ir.Model, feed: Mapping[str, Array], settings: SessionSettings, threads: int
    ) -> None:
        """Open the session, bind, warm up."""
        import onnxruntime

        calm = SessionSettings(settings.level, {**settings.entries, **_CALM})
        self._session = open_session(model, settings=calm, threads=threads)
        self._binding = self._session.io_binding()
        self._kept: list[Any] = []  # the binding points into these
        for name, array in feed.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
            self._kept.append(value)
            self._binding.bind_ortvalue_input(name, value)
        for output, array in zip(
            self._session.get_outputs(), self._session.run(None, dict(feed)), strict=True
        ):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(array))
            self._kept.append(value)
            self._binding.bind_ortvalue_output(output.name, value)
        for _ in range(_WARM_UP):
            self.run()

    def run(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def times(self, seconds: float) -> list[float]:
        """Microseconds of each of at least three runs, for about ``seconds``."""
        self.run()  # wakes the threads and fills the caches
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < _AT_LEAST or time.perf_counter() < end:
            start = time.perf_counter_ns()
            self.run()
            times.append((time.perf_counter_ns() - start) / 1000.0)
        return times


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """Time of one run.

    Attributes:
        us: The shortest: what else the machine does only ever adds time.
        noise: The median over the shortest; near 1 on a quiet machine.
    """

    us: float
    noise: float


def time_cases(cases: Sequence[Case], rounds: int, seconds: float) -> list[Measurement]:
    """Time each case; its rounds alternate with those of the others."""
    times: list[list[float]] = [[] for _ in cases]
    for number in range(rounds):
        order = list(enumerate(cases))
        for index, case in order if number % 2 == 0 else reversed(order):
            times[index].extend(case.times(seconds))
    return [Measurement(min(all_), statistics.median(all_) / min(all_)) for all_ in times]


def compute(model: ir.Model, feed: Mapping[str, Array], settings: SessionSettings) -> list[Array]:
    """All outputs of one run."""
    session = open_session(model, settings=settings, threads=1)
    return [np.asarray(output) for output in session.run(None, dict(feed))]


def operators(model: ir.Model, settings: SessionSettings) -> tuple[str, ...]:
    """Operators of the graph that the runtime really runs, in order."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = pathlib.Path(folder) / "optimized.onnx"
        open_session(model, settings=settings, threads=1, optimized_path=path)
        return tuple(op_name(node) for node in ir.load(path).graph)

"""Seconds of each step of a compile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qcompiler.pipeline.run import PassTiming

__all__ = ["Clock", "Progress"]

Progress = Callable[[str], None]


class Clock:
    """Seconds of each step; tells the progress callback."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.started = time.perf_counter()
        self.steps: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time the body as ``step``."""
        if self.progress is not None:
            self.progress(step)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps[step] = time.perf_counter() - started

    def report(self, passes: Sequence[PassTiming]) -> dict[str, Any]:
        """Seconds in total, by phase (the step ``passes`` is split into them) and by pass."""
        phases: dict[str, float] = {}
        for step, seconds in self.steps.items():
            if step != "passes":
                phases[step] = seconds
                continue
            for item in passes:
                phases[item.phase] = phases.get(item.phase, 0.0) + item.seconds
        return {
            "total": time.perf_counter() - self.started,
            "phases": phases,
            "passes": [dataclasses.asdict(item) for item in passes],
        }

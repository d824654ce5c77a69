"""Mergeable summaries of a stream of arrays, and the protocol they follow.

Law of each: the merge of the summaries of two parts is the summary of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.clipping import entropy_range, mse_range, percentile_range
from qcompiler.calibration.histogram import Histogram
from qcompiler.schemes import QSpec

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Calibrator", "Entropy", "Histogram", "MinMax", "MovingAverage", "Mse", "Percentile"]

Batch = npt.NDArray[np.float32]


class Calibrator(Protocol):
    """Summarises batches; knows neither model nor session."""

    def update(self, batch: Batch) -> object:
        """Take in a batch of finite values of any shape."""

    def merge(self, other: Self) -> None:
        """Take in the summary of a later part of the stream."""

    def result(self, spec: QSpec) -> tuple[float, float]:
        """``lo, hi`` to be represented under ``spec``."""


class MinMax:
    """The smallest and the largest value, exactly."""

    def __init__(self, lo: float = np.inf, hi: float = -np.inf) -> None:
        """An empty summary, or one that goes on from saved extremes."""
        self.lo, self.hi = lo, hi

    def update(self, batch: Batch) -> None:
        """Take in a batch of finite values."""
        if batch.size:
            self.extend(float(batch.min()), float(batch.max()))

    def extend(self, lo: float, hi: float) -> None:
        """Take in the extremes of a batch."""
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)

    def merge(self, other: MinMax) -> None:
        """Take in another summary; the order does not matter."""
        self.extend(other.lo, other.hi)

    def result(self, spec: QSpec) -> tuple[float, float]:
        """The extremes."""
        return self.lo, self.hi


class MovingAverage:
    """Exponential average of each batch's extremes: ``m <- (1 - momentum) m + momentum x``.

    ``merge`` is exact too. With ``n`` batches in the later part, whose average began at its own
    first extremes ``f`` and ended at ``m2``, going on from ``m1`` instead gives
    ``m2 + (1 - momentum)**n (m1 - f)``: the recurrence is linear in its start.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        """An empty average."""
        self.momentum = momentum
        self.batches = 0
        self.first = np.zeros(2)
        self.mean = np.zeros(2)

    def update(self, batch: Batch) -> None:
        """Take in a batch of finite values."""
        if batch.size:
            self.extend(float(batch.min()), float(batch.max()))

    def extend(self, lo: float, hi: float) -> None:
        """Take in the extremes of a batch."""
        extremes = np.array((lo, hi))
        if self.batches == 0:
            self.first = self.mean = extremes
        else:
            self.mean = (1 - self.momentum) * self.mean + self.momentum * extremes
        self.batches += 1

    def merge(self, other: MovingAverage) -> None:
        """Take in the average of the batches that came after."""
        if other.batches == 0:
            return
        if self.batches == 0:
            self.first, self.mean, self.batches = other.first, other.mean, other.batches
            return
        # the later part's first batch counted fully; here it counts `momentum`
        decay = (1 - self.momentum) ** other.batches
        self.mean = other.mean + decay * (self.mean - other.first)
        self.batches += other.batches

    def result(self, spec: QSpec) -> tuple[float, float]:
        """The averages."""
        return float(self.mean[0]), float(self.mean[1])


class _OfHistogram:
    """Shared by the calibrators that need the whole distribution."""

    def __init__(self) -> None:
        self.extremes = MinMax()
        self.histogram = Histogram()

    def update(self, batch: Batch) -> None:
        """Take in a batch of finite values."""
        self.extremes.update(batch)
        self.histogram.update(np.ascontiguousarray(batch, np.float32))

    def merge(self, other: _OfHistogram) -> None:
        """Take in another summary; the order does not matter."""
        self.extremes.merge(other.extremes)
        self.histogram.merge(other.histogram)


class Percentile(_OfHistogram):
    """The range that holds ``percentile`` percent of the values."""

    def __init__(self, percentile: float = 99.999) -> None:
        """An empty summary."""
        super().__init__()
        self.percentile = percentile

    def result(self, spec: QSpec) -> tuple[float, float]:
        """See :func:`qcompiler.calibration.clipping.percentile_range`."""
        lo, hi = self.extremes.lo, self.extremes.hi
        return percentile_range(self.histogram.distribution(lo, hi), spec, self.percentile)


class Entropy(_OfHistogram):
    """The range that loses the least information by Kullback and Leibler."""

    def __init__(self, bins: int = 2048) -> None:
        """An empty summary."""
        super().__init__()
        self.bins = bins

    def result(self, spec: QSpec) -> tuple[float, float]:
        """See :func:`qcompiler.calibration.clipping.entropy_range`."""
        lo, hi = self.extremes.lo, self.extremes.hi
        return entropy_range(self.histogram.distribution(lo, hi), spec, self.bins)


class Mse(_OfHistogram):
    """The range with the least mean squared error of the tensor itself."""

    def result(self, spec: QSpec) -> tuple[float, float]:
        """See :func:`qcompiler.calibration.clipping.mse_range`."""
        lo, hi = self.extremes.lo, self.extremes.hi
        return mse_range(self.histogram.distribution(lo, hi), spec)

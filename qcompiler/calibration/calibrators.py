"""Extremes of a stream of batches.

Law of each: the merge of the summaries of two parts is the summary of the whole.
"""

from __future__ import annotations

import numpy as np

__all__ = ["MinMax", "MovingAverage"]


class MinMax:
    """The smallest and the largest value, exactly."""

    def __init__(self, lo: float = np.inf, hi: float = -np.inf) -> None:
        """An empty summary, or one that goes on from saved extremes."""
        self.lo, self.hi = lo, hi

    def extend(self, lo: float, hi: float) -> None:
        """Take in the extremes of a batch."""
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)

    def merge(self, other: MinMax) -> None:
        """Take in another summary; the order does not matter."""
        self.extend(other.lo, other.hi)


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

    def result(self) -> tuple[float, float]:
        """The averages of the least and of the largest."""
        return float(self.mean[0]), float(self.mean[1])

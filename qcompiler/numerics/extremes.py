"""Least and greatest values by channel, with what each part of the data adds to the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Extremes"]

Floats = npt.NDArray[np.float32]


class Extremes:
    """Extremes of each channel over the parts of a stream, and the extremes without one part.

    The part left out of a channel is the one that holds the channel's extreme. So the two together
    tell, for every channel, how far a part reaches beyond ranges found on all others: the clipping
    of leave-one-out cross-validation, from two numbers a channel and side.

    Law: merging the extremes of two streams gives those of the whole.

    Attributes:
        lo: Smallest value, float32 ``[channels]``; +inf before any part.
        hi: Largest.
        next_lo: Smallest value of the parts that do not hold ``lo``; +inf with less than two.
        next_hi: Largest value of the parts that do not hold ``hi``.
    """

    def __init__(self, channels: int) -> None:
        """Of no data."""
        self.lo, self.next_lo = np.full((2, channels), np.inf, np.float32)
        self.hi, self.next_hi = np.full((2, channels), -np.inf, np.float32)

    @property
    def left_out(self) -> tuple[Floats, Floats]:
        """Least and greatest value without the part that holds the channel's extreme.

        Where there was one part, its own extremes: nothing is known of how it generalizes.
        """
        lo, hi = self.next_lo, self.next_hi
        return np.where(np.isinf(lo), self.lo, lo), np.where(np.isinf(hi), self.hi, hi)

    def extend(self, lo: Floats, hi: Floats) -> None:
        """Take in the extremes of some parts, ``[parts, channels]``, one or more."""
        self._take(*_two_least(lo), *(-x for x in _two_least(-hi)))

    def merge(self, other: Extremes) -> None:
        """Take in the extremes of other parts; the order does not matter."""
        self._take(other.lo, other.next_lo, other.hi, other.next_hi)

    def divided(self, factors: npt.NDArray[np.floating[Any]]) -> Extremes:
        """The extremes of the data divided by positive ``[channels]``."""
        found = Extremes(len(self.lo))
        for name in ("lo", "next_lo", "hi", "next_hi"):
            setattr(found, name, (getattr(self, name) / factors).astype(np.float32))
        return found

    def _take(self, lo: Floats, next_lo: Floats, hi: Floats, next_hi: Floats) -> None:
        self.next_lo = np.minimum(np.maximum(self.lo, lo), np.minimum(self.next_lo, next_lo))
        self.next_hi = np.maximum(np.minimum(self.hi, hi), np.maximum(self.next_hi, next_hi))
        self.lo, self.hi = np.minimum(self.lo, lo), np.maximum(self.hi, hi)


def _two_least(x: Floats) -> tuple[Floats, Floats]:
    if len(x) == 1:
        return x[0], np.full_like(x[0], np.inf)
    least = np.partition(x, 1, axis=0)
    return least[0], least[1]

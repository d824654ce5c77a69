"""Least and greatest values by channel, with what each part of the data adds to the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Extremes"]

Floats = npt.NDArray[np.float32]
Factors = npt.NDArray[np.floating[Any]]


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
        drift: Where the data were divided by factors: these over those that the parts without the
            extreme would have had, ``[channels]``.
    """

    def __init__(self, channels: int) -> None:
        """Of no data."""
        self.lo, self.next_lo = np.full((2, channels), np.inf, np.float32)
        self.hi, self.next_hi = np.full((2, channels), -np.inf, np.float32)
        self.drift = np.ones(channels)

    @property
    def left_out(self) -> tuple[Floats, Floats]:
        """Least and greatest value without the part that holds the channel's extreme.

        Where there was one part, its own extremes: nothing is known of how it generalizes.
        """
        lo, hi = self.next_lo, self.next_hi
        return np.where(np.isinf(lo), self.lo, lo), np.where(np.isinf(hi), self.hi, hi)

    @property
    def reach(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """How far each channel is to be expected on other data, float64 ``[channels]`` each.

        What a part reaches, in units of the range of all channels found without it, times the range
        found with it.
        """
        others_lo, others_hi = self.left_out
        lo, hi = (x.astype(np.float64) * self.drift for x in (self.lo, self.hi))
        return lo * _ratio(-self.lo, -others_lo), hi * _ratio(self.hi, others_hi)

    def extend(self, lo: Floats, hi: Floats) -> None:
        """Take in the extremes of some parts, ``[parts, channels]``, one or more."""
        self._take(*_two_least(lo), *(-x for x in _two_least(-hi)))

    def merge(self, other: Extremes) -> None:
        """Take in the extremes of other parts; the order does not matter."""
        self._take(other.lo, other.next_lo, other.hi, other.next_hi)

    def divided(self, factors: Factors, of_others: Factors | None = None) -> Extremes:
        """The extremes of the data divided by ``factors``, positive ``[channels]``.

        Args:
            factors: Found on all parts.
            of_others: Found without the part that holds a channel's extreme; None: the same.
        """
        of_others = factors if of_others is None else of_others
        found = Extremes(len(self.lo))
        found.lo, found.hi = ((x / factors).astype(np.float32) for x in (self.lo, self.hi))
        found.next_lo, found.next_hi = (
            (x / of_others).astype(np.float32) for x in (self.next_lo, self.next_hi)
        )
        found.drift = self.drift * factors / of_others
        return found

    def _take(self, lo: Floats, next_lo: Floats, hi: Floats, next_hi: Floats) -> None:
        self.next_lo = np.minimum(np.maximum(self.lo, lo), np.minimum(self.next_lo, next_lo))
        self.next_hi = np.maximum(np.minimum(self.hi, hi), np.maximum(self.next_hi, next_hi))
        self.lo, self.hi = np.minimum(self.lo, lo), np.maximum(self.hi, hi)


def _ratio(all_parts: Floats, others: Floats) -> float:
    """Of the ends of the ranges, at least 1; 1 where there is no such side of zero."""
    end, other = float(all_parts.max()), float(others.max())
    return max(end / other, 1.0) if end > 0.0 and other > 0.0 else 1.0


def _two_least(x: Floats) -> tuple[Floats, Floats]:
    if len(x) == 1:
        return x[0], np.full_like(x[0], np.inf)
    least = np.partition(x, 1, axis=0)
    return least[0], least[1]

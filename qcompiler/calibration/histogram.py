"""Exact counts of float32 values by the upper half of their bit pattern.

A bin holds the values that share sign, exponent and the first seven bits of the mantissa: its width
is at most 1/128 of its distance from zero. The bins are the same for every tensor and every batch,
so nothing must be known of the range beforehand, nothing is ever rebinned, and merging the
histograms of two parts gives the histogram of the whole to the last count. Outliers cost no
resolution where the mass is, which a linear histogram of a transformer's activations pays dearly.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Distribution", "Histogram"]

Floats = npt.NDArray[np.float64]

_CODES = 1 << 16
_SIGN = 1 << 15
_SPECIAL = 0x7F80  # codes from here on (of either sign) are infinities and NaN
_HIGH_HALF = 1 if sys.byteorder == "little" else 0
_CHUNK = 1 << 20  # elements counted at once: bounds the 8-byte indices that bincount makes


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """Counted values in ascending bins that are not empty.

    Attributes:
        left: Lower edge of each bin, float64 ``[bins]``.
        right: Upper edge.
        count: How many values lie in it, float64 (exact to 2**53).
    """

    left: Floats
    right: Floats
    count: Floats

    @property
    def total(self) -> float:
        """Number of values."""
        return float(self.count.sum())

    def magnitudes(self) -> Distribution:
        """The distribution of ``|x|``, in as many bins: they are symmetric about zero.

        The outermost two end at the least and at the largest value, so one of them may be cut
        shorter; their values count in the longer.
        """
        negative = self.right <= 0
        left = np.where(negative, -self.right, self.left)
        right = np.where(negative, -self.left, self.right)
        order = np.lexsort((right, left))
        left, right, count = left[order], right[order], self.count[order]
        # the bin of zeros has no width, and the one beside it, which begins there, is another
        new = (np.diff(left) > 0) | (left[:-1] == right[:-1]) & (np.diff(right) > 0)
        starts = np.flatnonzero(np.concatenate(([True], new)))
        return Distribution(
            left[starts], np.maximum.reduceat(right, starts), np.add.reduceat(count, starts)
        )

    def without_zero(self) -> Distribution:
        """The values that are not zero."""
        keep = (self.left != 0.0) | (self.right != 0.0)
        return Distribution(self.left[keep], self.right[keep], self.count[keep])

    def coarse(self, finest: float) -> Distribution:
        """Bins nearer to zero than ``finest`` joined into one on either side; zero stays apart."""
        group = np.arange(len(self.left))
        for small in (
            (self.left >= 0) & (self.right <= finest) & (self.right > 0),
            (self.right <= 0) & (self.left >= -finest) & (self.left < 0),
        ):
            if small.any():
                group[small] = group[small][0]
        starts = np.flatnonzero(np.concatenate(([True], np.diff(group) != 0)))
        ends = np.append(starts[1:], len(group)) - 1
        return Distribution(
            self.left[starts], self.right[ends], np.add.reduceat(self.count, starts)
        )

    def linear(self, lo: float, hi: float, bins: int) -> Floats:
        """Counts in ``bins`` equal bins of ``[lo, hi]``, values spread evenly within their bin."""
        edges = np.linspace(lo, hi, bins + 1)
        inside = np.interp(edges, *self._cumulative())
        inside[0], inside[-1] = 0.0, self.total
        return np.diff(inside)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` (0 to 1) of the values lie, linear within a bin."""
        edges, cumulative = self._cumulative()
        return float(np.interp(share * self.total, cumulative, edges))

    def _cumulative(self) -> tuple[Floats, Floats]:
        """Edges and how many values lie below each, both ascending."""
        ends = np.cumsum(self.count)
        edges = np.stack([self.left, self.right], axis=1).reshape(-1)
        below = np.stack([np.concatenate(([0.0], ends[:-1])), ends], axis=1).reshape(-1)
        return edges, below


class Histogram:
    """Mergeable counts of a stream of float32 arrays, 512 KiB whatever its length.

    Law: ``merge`` of the parts equals the whole, count by count.

    Attributes:
        counts: int64 ``[65536]`` by the upper 16 bits of the pattern.
        infinite: Values that were infinite; they are not in ``counts``.
        nans: Values that were NaN; they are not in ``counts``.
    """

    def __init__(self, counts: npt.NDArray[np.int64] | None = None, infinite: int = 0) -> None:
        """An empty histogram, or one that goes on from saved ``counts``."""
        self.counts = np.zeros(_CODES, np.int64) if counts is None else counts
        self.infinite = infinite
        self.nans = 0

    @property
    def total(self) -> int:
        """Number of finite values."""
        return int(self.counts.sum())

    def update(self, batch: npt.NDArray[np.float32]) -> bool:
        """Count a contiguous array; say whether all of it was finite."""
        patterns = batch.reshape(-1).view(np.uint16)[_HIGH_HALF::2]
        before_infinite, before_nans = self.infinite, self.nans
        for start in range(0, len(patterns), _CHUNK):
            counted = np.bincount(patterns[start : start + _CHUNK])
            self.counts[: len(counted)] += counted
        if self.counts[_SPECIAL:_SIGN].any() or self.counts[_SIGN + _SPECIAL :].any():
            special = int(self.counts[_SPECIAL:_SIGN].sum() + self.counts[_SIGN + _SPECIAL :].sum())
            self.counts[_SPECIAL:_SIGN] = 0
            self.counts[_SIGN + _SPECIAL :] = 0
            nans = int(np.isnan(batch).sum())
            self.nans += nans
            self.infinite += special - nans
        return self.infinite == before_infinite and self.nans == before_nans

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``."""
        self.counts += other.counts
        self.infinite += other.infinite
        self.nans += other.nans

    def distribution(self, lo: float, hi: float) -> Distribution:
        """The counted values, with the outermost edges cut to the observed ``[lo, hi]``."""
        negative = np.flatnonzero(self.counts[_SIGN:])[::-1]
        positive = np.flatnonzero(self.counts[:_SIGN])
        left = np.concatenate((-_value(negative + 1), _value(positive)))
        right = np.concatenate((-_value(negative), _value(positive + 1)))
        count = np.concatenate((self.counts[_SIGN + negative], self.counts[positive]))
        # zeros of either sign, and with them the subnormal numbers of 16 bits: a point, no bin
        tiny = np.maximum(np.abs(left), np.abs(right)) <= _value(np.array([1]))[0]
        left[tiny] = right[tiny] = 0.0
        return Distribution(np.clip(left, lo, hi), np.clip(right, lo, hi), count.astype(np.float64))


def _value(codes: npt.NDArray[Any]) -> Floats:
    """The number whose upper 16 bits are ``codes`` (positive) and whose lower bits are 0."""
    patterns = np.minimum(codes, _SPECIAL - 1).astype(np.uint32) << np.uint32(16)
    values = patterns.view(np.float32).astype(np.float64)
    # the upper edge of the last finite bin would be infinity
    return np.where(codes >= _SPECIAL, 2.0**128, values)

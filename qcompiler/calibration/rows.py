"""Statistics by channel, and a bounded random sample of rows, of the activations a layer reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.extremes import Extremes

__all__ = ["Channels", "Reservoir", "as_rows"]

Floats = npt.NDArray[np.float32]

_SUMMED = 4096  # rows summed in float32 before float64 takes over
_LARGE = 1e30  # sums of so many larger numbers may not be finite in float32


def as_rows(x: Floats, channel_axis: int) -> Floats:
    """``x`` as ``[rows, channels]``: a view when the channels are last."""
    moved = x if channel_axis in (-1, x.ndim - 1) else np.moveaxis(x, channel_axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _sum_type(lo: Floats, hi: Floats) -> type[np.floating[Any]]:
    """float32, which is faster, unless sums of such numbers may leave it."""
    ordinary = max(-float(lo.min()), float(hi.max())) < _LARGE
    return np.float32 if ordinary else np.float64


class Channels:
    """Sum, least and greatest value of each channel. Merging parts gives the whole.

    Attributes:
        total: Sum by channel, float64: sums of millions of float32 lose digits in float32.
        extremes: Smallest and largest value by channel. A part is what has one leading index of an
            array of three axes or more (a sample), or else the array.
        rows: Rows summed.
    """

    def __init__(self, channels: int) -> None:
        """An empty summary of ``channels`` channels."""
        self.total = np.zeros(channels)
        self.extremes = Extremes(channels)
        self.rows = 0

    @property
    def lo(self) -> Floats:
        """Smallest value by channel."""
        return self.extremes.lo

    @property
    def hi(self) -> Floats:
        """Largest value by channel."""
        return self.extremes.hi

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean by channel."""
        return np.asarray(self.total / max(self.rows, 1))

    def update(self, x: Floats, channel_axis: int) -> tuple[float, float]:
        """Take in finite values; ``channel_axis`` is -1 or 1. Returns the extremes of ``x``."""
        if channel_axis == 1 and x.ndim > 2:  # [N, C, ...]: the contiguous axes first
            flat = x.reshape(x.shape[0], x.shape[1], -1)
            lo, hi = flat.min(axis=2), flat.max(axis=2)
            total = flat.sum(axis=2, dtype=_sum_type(lo, hi)).sum(axis=0, dtype=np.float64)
            self._add(total, flat.shape[0] * flat.shape[2])
            self.extremes.extend(lo, hi)
            return float(lo.min()), float(hi.max())
        rows = as_rows(x, channel_axis)
        parts = rows.reshape(x.shape[0] if x.ndim > 2 else 1, -1, rows.shape[1])
        lo, hi = parts.min(axis=1), parts.max(axis=1)
        total, dtype = np.zeros(rows.shape[1]), _sum_type(lo, hi)
        for start in range(0, len(rows), _SUMMED):
            total += rows[start : start + _SUMMED].sum(axis=0, dtype=dtype)
        self._add(total, len(rows))
        self.extremes.extend(lo, hi)
        return float(lo.min()), float(hi.max())

    def merge(self, other: Channels) -> None:
        """Take in another part; the order does not matter."""
        self._add(other.total, other.rows)
        self.extremes.merge(other.extremes)

    def _add(self, total: npt.NDArray[np.float64], rows: int) -> None:
        self.total = self.total + total
        self.rows += rows


class Reservoir:
    """A uniform sample of the rows of a stream, at most ``capacity``, the same for the same seed.

    Each row has a key drawn from the uniform distribution and the rows with the smallest keys
    stay: so samples of two parts merge into a sample of the whole. Keys of rows that cannot stay
    are never drawn: of ``n`` uniform numbers the ``k`` smallest are partial sums of exponential
    gaps over the sum of all ``n + 1`` gaps (Devroye, Non-Uniform Random Variate Generation, V.3).
    """

    def __init__(self, capacity: int, seed: int) -> None:
        """An empty sample."""
        self.capacity = capacity
        self.keys = np.zeros(0)
        self.rows = np.zeros((0, 0), np.float32)
        self._random = np.random.default_rng(seed)

    def update(self, x: Floats, channel_axis: int) -> None:
        """Offer all rows of ``x``; those that stay are copied."""
        moved = x if channel_axis in (-1, x.ndim - 1) else np.moveaxis(x, channel_axis, -1)
        lead = moved.shape[:-1]
        count = int(np.prod(lead))
        keys = self._smallest_keys(count)
        if len(self.keys) == self.capacity:
            keys = keys[keys < self.keys[-1]]
        if not len(keys):
            return
        picked = self._random.choice(count, len(keys), replace=False, shuffle=True)
        self._take(keys, moved[np.unravel_index(picked, lead)])

    def merge(self, other: Reservoir) -> None:
        """Take in the sample of another part."""
        if len(other.keys):
            self._take(other.keys, other.rows)

    def _smallest_keys(self, count: int) -> npt.NDArray[np.float64]:
        kept = min(count, self.capacity)
        gaps = np.cumsum(self._random.standard_exponential(kept))
        rest = self._random.standard_gamma(count + 1 - kept)
        return np.asarray(gaps / (gaps[-1] + rest)) if kept else gaps

    def _take(self, keys: npt.NDArray[np.float64], rows: Floats) -> None:
        if not len(self.keys):
            self.rows = np.zeros((0, rows.shape[1]), np.float32)
        keys = np.concatenate((self.keys, keys))
        order = np.argsort(keys, kind="stable")[: self.capacity]
        self.rows = np.concatenate((self.rows, rows))[order]
        self.keys = keys[order]

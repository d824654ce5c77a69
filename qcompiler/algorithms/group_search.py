"""Scale and zero point of every group of a weight by search: what data-free algorithms share.

A group ``x`` is stored as ``s * c`` with ``c = q - z`` from the numbers of its format. Started from
scales under which nothing is clipped, for several integer zero points, each candidate is rounded,
judged by ``sum h |x - s c|^p``, and improved by the least squares solution for the scale given the
rounding, ``s = sum h x c / sum h c^2``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.rtn import round_with_scale
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.codebooks import nearest_entry
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import Granularity, QSpec

__all__ = ["GroupSearch", "group_axis", "search_groups"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_CHUNK = 1 << 16  # elements searched at a time: the buffers stay in the second-level cache
_TINY = np.float32(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, slots=True)
class GroupSearch:
    """What is tried for each group.

    Attributes:
        ratios: Multiples of the smallest scale that clips nothing.
        shifts: Distances from the nearest zero point, of asymmetric formats.
        refits: Least squares steps after each.
        norm: Exponent ``p`` of the error that decides.
        full_range: Of symmetric formats: a negative scale as well, so that the group's largest
            element may be the lowest number, which has no positive counterpart.
        magnitude: Exponent with which an element's size weighs its error: the weights ``h`` are
            ``(x^2 + mean x^2)^(magnitude / 2)``; 0 weighs all alike.
    """

    ratios: tuple[float, ...] = (1.0,)
    shifts: tuple[int, ...] = (0,)
    refits: int = 0
    norm: float = 2.0
    full_range: bool = True
    magnitude: float = 0.0

    def solve(self, x: Floats, spec: QSpec) -> tuple[Floats, npt.NDArray[Any]]:
        """Scales and zero points ``[T, 1]`` of groups ``x [T, g]`` whose largest size is 1."""
        h = self._weights(x)
        if spec.float_zero:
            return self._affine(x, h, spec)
        best = np.full(len(x), np.inf, np.float32)
        scale, zero = np.ones((len(x), 1), np.float32), np.zeros((len(x), 1), np.int32)
        for start, z in self._starts(x, spec):
            for ratio in self.ratios:
                s = start * np.float32(ratio)
                for step in range(self.refits + 1):
                    c = _numbers(x, s, z, spec)
                    error = self._error(x, s, c, h)
                    better = error < best
                    best[better] = error[better]
                    scale[better] = s[better]
                    zero[better] = z[better]
                    if step < self.refits:
                        s = _least_squares(x, c, h, s)
        return scale, zero

    def _affine(self, x: Floats, h: Floats | None, spec: QSpec) -> tuple[Floats, npt.NDArray[Any]]:
        """Scales and float zero points: for each scale the zero points are improved in turns.

        From an integer zero point, under which small elements stay small, elements are rounded and
        the zero point becomes what leaves no mean error. What each round gives is judged under the
        line that fits it best, scale and zero point solved for together. Rounds go on with the
        scale that they began with: with the solved one they come out worse.
        """
        lo, hi = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
        span = np.where(hi > lo, hi - lo, 1).astype(np.float32) / np.float32(spec.qmax)
        best = np.full(len(x), np.inf, np.float32)
        scale, zero = np.ones_like(lo), np.zeros_like(lo)
        center = _mean(x, h)
        around = x - center
        for ratio in self.ratios:
            s = span * np.float32(ratio)
            steps = x / s
            z = np.rint(-lo / s)
            for _ in range(self.refits + 1):
                q = np.clip(np.rint(steps + z), 0, spec.qmax)
                middle = _mean(q, h)
                z = middle - center / s
                fitted = _least_squares(around, q - middle, h, s)
                shift = middle - center / fitted
                error = self._error(x, fitted, q - shift, h)
                better = error < best
                best[better], scale[better], zero[better] = (
                    error[better], fitted[better], shift[better]
                )  # fmt: skip
        return scale, zero

    def _weights(self, x: Floats) -> Floats | None:
        if self.magnitude == 0:
            return None
        squares = np.square(x)
        squares += squares.mean(axis=1, keepdims=True)
        return squares if self.magnitude == 2 else squares ** np.float32(self.magnitude / 2)

    def _starts(self, x: Floats, spec: QSpec) -> Iterator[tuple[Floats, Ints]]:
        """Scales under which nothing is clipped, each with its zero point."""
        lo = np.minimum(x.min(axis=1, keepdims=True), 0)
        hi = np.maximum(x.max(axis=1, keepdims=True), 0)
        if spec.symmetric:
            z = np.full(lo.shape, spec.middle, np.int32)
            above, below = spec.qmax - spec.middle, spec.middle - spec.qmin
            if above == below or not self.full_range:
                yield _positive(np.maximum(hi, -lo) / np.float32(above)), z
                return
            yield _positive(np.maximum(hi / np.float32(above), -lo / np.float32(below))), z
            yield -_positive(np.maximum(-lo / np.float32(above), hi / np.float32(below))), z
            return
        nearest = np.rint(spec.qmin - lo * (spec.qmax - spec.qmin) / np.maximum(hi - lo, _TINY))
        for shift in self.shifts:
            z = np.clip(nearest + shift, spec.qmin, spec.qmax)
            above, below = spec.qmax - z, z - spec.qmin
            upper = np.divide(hi, above, out=np.zeros_like(hi), where=above > 0)
            lower = np.divide(-lo, below, out=np.zeros_like(lo), where=below > 0)
            yield _positive(np.maximum(upper, lower)), z.astype(np.int32)

    def _error(self, x: Floats, s: Floats, c: Floats, h: Floats | None) -> Floats:
        error = c * s
        error -= x
        if self.norm == 2:
            if h is None:
                return _dot(error, error)
            error *= error
            return _dot(error, h)
        np.abs(error, out=error)
        if self.norm != 1:
            np.power(error, np.float32(self.norm), out=error)
        total: Floats = error.sum(axis=1) if h is None else _dot(error, h)
        return total


def _positive(scale: Floats) -> Floats:
    """Scales, 1 where a group holds nothing but zeros."""
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _numbers(x: Floats, s: Floats, z: Ints, spec: QSpec) -> Floats:
    """The multiples of ``s`` nearest to ``x`` that the format has."""
    c = x * (np.float32(1) / s)
    if spec.codebook:
        return nearest_entry(c, spec.codebook)
    np.rint(c, out=c)
    shift = spec.middle if spec.symmetric else z.astype(np.float32)  # one number is much faster
    np.maximum(c, np.float32(spec.qmin) - shift, out=c)
    return np.minimum(c, np.float32(spec.qmax) - shift, out=c)


def _dot(a: Floats, b: Floats) -> Floats:
    """The sum of products of each row."""
    total: Floats = np.einsum("tg,tg->t", a, b)
    return total


def _mean(x: Floats, h: Floats | None) -> Floats:
    """The mean of each row, ``[T, 1]``; elements count by ``h``."""
    if h is None:
        mean: Floats = x.mean(axis=1, keepdims=True)
        return mean
    total = h.sum(axis=1, keepdims=True)
    mean = np.divide(_dot(x, h)[:, None], total, out=np.zeros_like(total), where=total > 0)
    return mean


def _least_squares(x: Floats, c: Floats, h: Floats | None, s: Floats) -> Floats:
    """The scales with the least squared error given ``c``; the old ones where that is no scale."""
    weighted = c if h is None else c * h
    top, bottom = _dot(x, weighted)[:, None], _dot(c, weighted)[:, None]
    found = np.divide(top, bottom, out=np.zeros_like(s), where=bottom > 0)
    return np.where(found * s > 0, found, s)


def group_axis(spec: QSpec, rank: int) -> int:
    """The axis along which a matrix has its groups: that of BLOCK, the other one of CHANNEL.

    Raises:
        ValueError: The spec has one scale, or the constant is no matrix.
    """
    if rank != 2 or spec.axis is None:
        raise ValueError(f"wanted a matrix in groups or columns, not rank {rank} under {spec}")
    axis = spec.axis % 2
    return axis if spec.granularity is Granularity.BLOCK else 1 - axis


def search_groups(
    weight: npt.NDArray[np.floating],
    spec: QSpec,
    search: GroupSearch,
    *,
    where: str = "",
) -> QTensor:
    """Round a matrix with the scales and zero points that a search finds.

    Args:
        weight: ``[K, N]`` in groups along axis 0 (a table ``[V, D]``: along axis 1), any float
            type; computed in float32. The last group may be ragged.
        spec: BLOCK, or CHANNEL for one scale per column.
        search: What is tried.
        where: The user's name for the constant, for the error.

    Raises:
        QcError: QC301, the weight holds NaN or infinity.
    """
    weight = np.asarray(weight)
    axis = group_axis(spec, weight.ndim)
    rows = np.moveaxis(weight, axis, -1)
    count, length = rows.shape
    size = spec.group_size or max(1, length)
    whole = length // size * size
    groups = -(-length // size)
    scale = np.ones((count, groups), np.float32)
    zero = np.zeros((count, groups), np.float32 if spec.float_zero else np.int32)
    step = max(1, _CHUNK // max(1, length))
    for start in range(0, count if length else 0, step):
        piece = np.ascontiguousarray(rows[start : start + step], np.float32)
        if not np.isfinite(piece).all():
            bad = int(weight.size - np.isfinite(weight).sum())
            raise QcError(
                Code.NOT_FINITE_WEIGHT,
                where,
                f"{bad} of {weight.size} elements are NaN or infinite",
                "repair the checkpoint, or keep the node in float with a rule",
                count=bad,
            )
        here = slice(start, start + step)
        for begin, end, tiles in (
            (0, whole, slice(0, whole // size)),
            (whole, length, slice(-1, None)),
        ):
            if begin == end:
                continue
            width = min(size, end - begin)
            x = piece[:, begin:end].reshape(-1, width)
            s, z = _scaled(x, spec, search)
            scale[here, tiles] = s.reshape(len(piece), -1)
            zero[here, tiles] = z.reshape(len(piece), -1)
    dead = scale == 0
    if dead.any():  # zeros under any scale: one that leaves products normal numbers
        scale[dead] = np.abs(scale).max() or 1.0
        zero[dead] = 0 if spec.float_zero else spec.middle
    scale, zero = (np.ascontiguousarray(np.moveaxis(item, -1, axis)) for item in (scale, zero))
    return round_with_scale(np.asarray(weight, np.float32), scale, zero, spec)


def _scaled(x: Floats, spec: QSpec, search: GroupSearch) -> tuple[Floats, npt.NDArray[Any]]:
    """Solve groups in units of their largest element; dead groups get scale 0."""
    unit = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))
    alive = unit > 0
    safe = np.where(alive, unit, np.float32(1)).astype(np.float32)
    s, z = search.solve(x / safe, spec)
    s = s * safe
    return np.where(alive, np.copysign(np.maximum(np.abs(s), _TINY), s), 0), z

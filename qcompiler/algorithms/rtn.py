"""Round to nearest: the baseline of all weight algorithms, and the fastest.

One scale per tensor, per channel or per block of consecutive elements, from the extrema of each
tile; for few bits optionally from a search over clipped extrema that minimises the squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.affine import Array, IntArray, range_to_params
from qcompiler.numerics.qtensor import QTensor, expand_groups
from qcompiler.schemes import Granularity, QSpec

__all__ = ["CLIP_RATIOS", "round_to_nearest", "round_with_scale", "tile_extrema"]

# Shares of the extrema that the clip search tries. Below 0.7 nothing wins for 4-bit Gaussian or
# Laplacian weights in blocks of 32 to 128; 2 bits want up to one half.
CLIP_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)

_CHUNK = 1 << 16  # elements rounded at a time: 256 KiB of float32 stay in the second-level cache


def round_to_nearest(
    weight: Array,
    spec: QSpec,
    *,
    where: str = "",
    clip_ratios: Sequence[float] = (1.0,),
    smallest_scale: Array | None = None,
) -> QTensor:
    """Quantize a constant under ``spec``.

    A tile of zeros gets the largest scale of the others (1 when all are zero): it stands for its
    zeros under any scale, and products with scales of other tensors stay normal numbers.

    Args:
        weight: Any float type and shape; computed in float32.
        spec: Granularity TENSOR, CHANNEL or BLOCK; the last block may be ragged.
        where: The user's name for the constant, for the error.
        clip_ratios: For each tile the ratio is taken that minimises the squared error when its
            extrema are multiplied by it. See :data:`CLIP_RATIOS`.
        smallest_scale: Floor of the scales, broadcast against them; None has no floor.

    Returns:
        Integers in the spec's type with scales of the weight's rank.

    Raises:
        QcError: QC301, the weight holds NaN or infinity.
    """
    weight = np.asarray(weight, np.float32)
    lo, hi = tile_extrema(weight, spec)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        count = int(np.size(weight) - np.isfinite(weight).sum())
        raise QcError(
            Code.NOT_FINITE_WEIGHT,
            where,
            f"{count} of {weight.size} elements are NaN or infinite",
            "repair the checkpoint, or keep the node in float with a rule",
            count=count,
        )
    best = _scales(lo, hi, spec, 1.0, smallest_scale)
    if len(clip_ratios) > 1:
        best = _search(weight, lo, hi, spec, clip_ratios, smallest_scale)
    return round_with_scale(weight, *best, spec)


def tile_extrema(weight: Array, spec: QSpec) -> tuple[Array, Array]:
    """Smallest and largest element of each tile, of the weight's rank; empty tiles give 0."""
    if weight.size == 0:
        shape = [1] * weight.ndim
        if spec.axis is not None:
            size = weight.shape[spec.axis]
            shape[spec.axis] = -(-size // spec.group_size) if spec.group_size else size
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    if spec.granularity is Granularity.BLOCK:
        assert spec.axis is not None
        assert spec.group_size is not None
        starts = np.arange(0, weight.shape[spec.axis], spec.group_size)
        return (
            np.minimum.reduceat(weight, starts, axis=spec.axis),
            np.maximum.reduceat(weight, starts, axis=spec.axis),
        )
    if spec.granularity is Granularity.CHANNEL:
        assert spec.axis is not None
        keep = spec.axis % weight.ndim
        axes = tuple(axis for axis in range(weight.ndim) if axis != keep)
        return weight.min(axis=axes, keepdims=True), weight.max(axis=axes, keepdims=True)
    return weight.min(keepdims=True), weight.max(keepdims=True)


def round_with_scale(weight: Array, scale: Array, zero_point: IntArray, spec: QSpec) -> QTensor:
    """Quantize with given parameters, shaped as the tiles of ``spec``."""
    q = np.empty(weight.shape, _storage(spec))
    if weight.ndim == 0:
        q[...] = np.clip(np.rint(weight / scale) + zero_point, spec.qmin, spec.qmax)
    else:
        _round_rows(weight, scale, zero_point, spec, q)
    signed_zero = spec.is_signed and not zero_point.any()
    return QTensor(
        q,
        np.asarray(scale, np.float32),
        None if signed_zero else np.asarray(zero_point, np.int32),
        spec,
    )


def _round_rows(
    weight: Array, scale: Array, zero_point: IntArray, spec: QSpec, q: IntArray
) -> None:
    """Fill ``q`` a few rows of axis 0 at a time, so that the temporaries stay in cache."""
    rows = max(1, _CHUNK // max(1, weight[0].size if weight.shape[0] else 1))
    group = spec.group_size if spec.axis is not None and spec.axis % weight.ndim == 0 else None
    if group is not None:
        rows = group * max(1, rows // group)
    inner = spec if group is None else None
    for start in range(0, weight.shape[0], rows):
        stop = min(start + rows, weight.shape[0])
        if group is not None:
            tiles = slice(start // group, -(-stop // group))
            parts: list[npt.NDArray[Any]] = [
                np.repeat(item[tiles], group, axis=0)[: stop - start] if item.shape[0] > 1 else item
                for item in (scale, zero_point)
            ]
        else:
            assert inner is not None
            parts = [
                expand_groups(item[start:stop] if item.shape[0] > 1 else item, weight.shape, inner)
                for item in (scale, zero_point)
            ]
        piece = np.divide(weight[start:stop], parts[0])
        np.rint(piece, out=piece)
        if zero_point.any():
            piece += parts[1]
        np.clip(piece, spec.qmin, spec.qmax, out=piece)
        q[start:stop] = piece


def _scales(
    lo: Array, hi: Array, spec: QSpec, ratio: float, smallest: Array | None
) -> tuple[Array, IntArray]:
    scale, zero_point = range_to_params(lo * np.float32(ratio), hi * np.float32(ratio), spec)
    dead = (lo == 0) & (hi == 0)
    if dead.any():
        alive = scale[~dead]
        scale = np.where(dead, alive.max() if alive.size else np.float32(1.0), scale)
    if smallest is not None:
        scale = np.maximum(scale, smallest)
        if not spec.symmetric:
            # the zero point belongs to the scale: move it with the floor
            low = np.minimum(lo * np.float32(ratio), 0.0)
            zero_point = np.clip(np.rint(spec.qmin - low / scale), spec.qmin, spec.qmax)
    return scale.astype(np.float32), zero_point.astype(np.int32)


def _search(
    weight: Array,
    lo: Array,
    hi: Array,
    spec: QSpec,
    ratios: Sequence[float],
    smallest: Array | None,
) -> tuple[Array, IntArray]:
    scale, zero_point = _scales(lo, hi, spec, ratios[0], smallest)
    error = _tile_errors(weight, scale, zero_point, spec)
    for ratio in ratios[1:]:
        other_scale, other_zero = _scales(lo, hi, spec, ratio, smallest)
        other_error = _tile_errors(weight, other_scale, other_zero, spec)
        better = other_error < error
        scale = np.where(better, other_scale, scale)
        zero_point = np.where(better, other_zero, zero_point)
        error = np.where(better, other_error, error)
    return scale, zero_point


def _tile_errors(weight: Array, scale: Array, zero_point: IntArray, spec: QSpec) -> Array:
    """Squared error of each tile, shaped as ``scale``."""
    difference = round_with_scale(weight, scale, zero_point, spec).dequantize()
    difference -= weight
    difference *= difference
    if spec.granularity is Granularity.BLOCK:
        assert spec.axis is not None
        assert spec.group_size is not None
        starts = np.arange(0, weight.shape[spec.axis], spec.group_size)
        summed: Array = np.add.reduceat(difference, starts, axis=spec.axis)
        return summed
    axes = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
    total: Array = difference.sum(axis=axes, keepdims=True)
    return total


def _storage(spec: QSpec) -> np.dtype[Any]:
    """The smallest numpy type that holds the spec's integers: one byte up to 8 bits."""
    if spec.dtype.bitwidth <= 8:
        return np.dtype(np.int8 if spec.is_signed else np.uint8)
    return np.dtype(spec.dtype.numpy())

"""Round to nearest: the baseline of all weight algorithms, and the fastest.

One scale per tensor, per channel or per block of consecutive elements, from the extrema of each
tile; for few bits optionally from a search over clipped extrema that minimises the squared error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.affine import Array, IntArray, range_to_params
from qcompiler.numerics.codebooks import nearest_entry, to_codes
from qcompiler.numerics.float8 import round_float8, to_float8
from qcompiler.numerics.magnitude import unit_of
from qcompiler.numerics.qtensor import QTensor, expand_groups
from qcompiler.schemes import Granularity, QSpec

__all__ = ["CLIP_RATIOS", "round_to_nearest", "round_with_scale", "tile_extrema"]

# Shares of the extrema that the clip search tries. Below 0.7 nothing wins for 4-bit Gaussian or
# Laplacian weights in blocks of 32 to 128; 2 bits want up to one half.
CLIP_RATIOS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.6, 0.5)

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
        Elements of the spec's type with scales of the weight's rank.

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
    if spec.codebook == "b1":
        return round_with_scale(weight, *_mean_magnitude(weight, lo.shape, spec), spec)
    best = _scales(lo, hi, spec, clip_ratios[0], smallest_scale)
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


def round_with_scale(
    weight: Array, scale: Array, zero_point: npt.NDArray[Any], spec: QSpec
) -> QTensor:
    """Quantize with given parameters, shaped as the tiles of ``spec``."""
    q = np.empty(weight.shape, _element(spec))
    if weight.ndim == 0:
        q[...] = _round(weight, scale, zero_point, spec)
    for rows, tiles in _pieces(weight.shape, spec):
        steps, zeros = (
            _along(item, weight.shape, rows, tiles, spec) for item in (scale, zero_point)
        )
        q[rows] = _round(weight[rows], steps, zeros, spec)
    signed_zero = (spec.is_signed or spec.codebook) and not zero_point.any()
    return QTensor(
        q,
        np.asarray(scale, np.float32),
        None if signed_zero else zero_point.astype(np.float32 if spec.float_zero else np.int32),
        spec,
    )


def _round(
    weight: Array, scale: Array, zero_point: npt.NDArray[Any], spec: QSpec
) -> npt.NDArray[Any]:
    """Integers as floats, 8-bit floats, or codes."""
    if spec.codebook:
        return to_codes(weight / scale, spec.codebook)
    if spec.is_float8:
        return to_float8(weight / scale, spec.dtype)
    piece: Array = np.asarray(weight / scale)  # a scalar stays an array that can be written to
    if spec.float_zero:
        piece += zero_point
        return np.clip(np.rint(piece), spec.qmin, spec.qmax)
    np.rint(piece, out=piece)
    if zero_point.any():
        piece += zero_point.astype(np.float32)
    return np.clip(piece, spec.qmin, spec.qmax)


def _pieces(shape: tuple[int, ...], spec: QSpec) -> Iterator[tuple[slice, slice]]:
    """Cut axis 0 so that a piece stays in cache: slices of the weight and of its parameters."""
    if not shape or 0 in shape:
        return
    rows = max(1, _CHUNK // int(np.prod(shape[1:])))
    group = 1
    if spec.group_size is not None and spec.axis is not None and spec.axis % len(shape) == 0:
        group = spec.group_size
        rows = group * max(1, rows // group)
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        yield slice(start, stop), slice(start // group, -(-stop // group))


def _along(
    params: npt.NDArray[Any], shape: tuple[int, ...], rows: slice, tiles: slice, spec: QSpec
) -> npt.NDArray[Any]:
    """The parameters of some rows, broadcastable against them."""
    part = params[tiles] if params.shape[0] > 1 else params
    if spec.group_size is None:
        return part
    return expand_groups(part, (rows.stop - rows.start, *shape[1:]), spec)


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


def _mean_magnitude(weight: Array, shape: tuple[int, ...], spec: QSpec) -> tuple[Array, IntArray]:
    """The scales of signs with the least squared error (XNOR-Net, arXiv 1603.05279)."""
    magnitude = np.abs(weight)
    counts = _sum_tiles(np.ones_like(weight), shape, spec)
    scale = (_sum_tiles(magnitude, shape, spec) / counts).astype(np.float32)
    scale[scale == 0] = 1.0
    return scale, np.zeros(shape, np.int32)


def _search(
    weight: Array,
    lo: Array,
    hi: Array,
    spec: QSpec,
    ratios: Sequence[float],
    smallest: Array | None,
) -> tuple[Array, IntArray]:
    """Per tile the parameters of the ratio with the smallest squared error."""
    unit = unit_of(np.concatenate((lo.reshape(-1), hi.reshape(-1))))
    if unit != 1.0:  # squares would not be finite, or 0
        floor = None if smallest is None else smallest / unit
        scale, zero_point = _search(weight / unit, lo / unit, hi / unit, spec, ratios, floor)
        return scale * unit, zero_point
    tried = [_scales(lo, hi, spec, ratio, smallest) for ratio in ratios]
    # q - zero_point, clipped to what the type leaves for it, needs no zero point in the loop
    bounds = [(spec.qmin - zero.astype(np.float32), spec.qmax - zero) for _, zero in tried]
    errors = np.zeros((len(ratios), *lo.shape))  # float64: a tile may hold millions of squares
    for rows, tiles in _pieces(weight.shape, spec):
        piece, here = weight[rows], tiles if lo.shape[0] > 1 else slice(0, 1)
        for index, (scale, _) in enumerate(tried):
            parts = (scale, *bounds[index])
            steps, low, high = (_along(part, weight.shape, rows, tiles, spec) for part in parts)
            difference = np.divide(piece, steps)
            if spec.codebook:
                difference = nearest_entry(difference, spec.codebook)
            elif spec.is_float8:
                difference = round_float8(difference, spec.dtype)
            else:
                np.rint(difference, out=difference)
                np.clip(difference, low, high, out=difference)
            difference *= steps
            difference -= piece
            difference *= difference
            errors[index, here] += _sum_tiles(difference, lo.shape, spec)
    best = errors.argmin(axis=0)[None]
    scales, zeros = (np.stack(items) for items in zip(*tried, strict=True))
    return (
        np.take_along_axis(scales, best, axis=0)[0],
        np.take_along_axis(zeros, best, axis=0)[0],
    )


def _sum_tiles(squares: Array, shape: tuple[int, ...], spec: QSpec) -> Array:
    """Sums over the tiles of some rows; ``shape`` is that of all parameters."""
    total: Array
    if spec.group_size is not None and spec.axis is not None:
        axis, size = spec.axis % len(shape), squares.shape[spec.axis]
        if size % spec.group_size:
            total = np.add.reduceat(squares, np.arange(0, size, spec.group_size), axis=axis)
            return total
        split = (*squares.shape[:axis], -1, spec.group_size, *squares.shape[axis + 1 :])
        total = squares.reshape(split).sum(axis=axis + 1)
        return total
    kept = None if spec.axis is None else spec.axis % len(shape)
    total = squares.sum(axis=tuple(a for a in range(squares.ndim) if a != kept), keepdims=True)
    return total


def _element(spec: QSpec) -> np.dtype[Any]:
    """The type to hold one element in; types of fewer than 8 bits take a byte each."""
    if spec.is_float8 or spec.dtype.bitwidth > 8:
        return np.dtype(spec.dtype.numpy())
    return np.dtype(np.int8 if spec.is_signed else np.uint8)

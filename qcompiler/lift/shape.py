"""Operators that move, select and index elements, and those that compute shapes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.lift.operands import Ints, Number, Table, ints, number

__all__ = ["OPERATORS"]


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Sizes of the axes from ``start`` to ``end``."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device=x.device)


def size(x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def identity(x: Tensor) -> Tensor:
    """The operand."""
    return x


def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """New sizes: 0 keeps the axis' size (unless ``allowzero``), -1 takes what is left."""
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if item == 0 else item for axis, item in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: all before ``axis``, and the rest."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(x: Tensor, *, perm: Ints = None) -> Tensor:
    """Axes in the order ``perm``; reversed when it is absent."""
    return x.permute(ints(perm) if perm is not None else list(range(x.ndim))[::-1])


def squeeze(x: Tensor, axes: Ints = None) -> Tensor:
    """Drop axes of size 1: those named, or all."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    """Insert axes of size 1 at these places of the result."""
    rank = x.ndim + len(ints(axes))
    for axis in sorted(item % rank for item in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def concat(*xs: Tensor, axis: int) -> Tensor:
    """Join along ``axis``."""
    return torch.cat(xs, dim=axis)


def split(
    x: Tensor, split: Ints = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    """Cut along ``axis`` into the given sizes, or into equal parts (the last may be less)."""
    if split is not None:
        return tuple(torch.split(x, ints(split), dim=axis))
    count = num_outputs or outputs
    each, whole = -(-x.shape[axis] // count), x.shape[axis]
    sizes = [max(0, min(each, whole - each * index)) for index in range(count)]
    return tuple(torch.split(x, sizes, dim=axis))


def slice_(x: Tensor, starts: Ints, ends: Ints, axes: Ints = None, steps: Ints = None) -> Tensor:
    """``x[start:end:step]`` along each of ``axes``."""
    firsts, stops = ints(starts), ints(ends)
    along = ints(axes) if axes is not None else list(range(len(firsts)))
    strides = ints(steps) if steps is not None else [1] * len(firsts)
    for axis, *bounds in zip(along, firsts, stops, strides, strict=True):
        chosen = range(x.shape[axis])[slice(*bounds)]
        if chosen.step > 0:
            index: list[slice] = [slice(None)] * x.ndim
            index[axis] = slice(chosen.start, chosen.stop, chosen.step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), device=x.device, dtype=torch.int64))
    return x


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices with negative ones counted from the end."""
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Slices of ``x`` along ``axis``; the axis is replaced by the axes of ``indices``."""
    axis = axis % x.ndim
    index = _from_start(indices, x.shape[axis])
    if x.ndim == 2 and axis == 0:
        return functional.embedding(index, x)
    chosen = x.index_select(axis, index.flatten())
    return chosen.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Element for element, by index along ``axis``."""
    return x.gather(axis, _from_start(indices, x.shape[axis]))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices by index tuples in the last axis of ``indices``; leading axes run in step."""
    batch, depth = x.shape[:batch_dims], indices.shape[-1]
    flat = x.reshape(-1, *x.shape[batch_dims:])
    index = indices.reshape(flat.shape[0], -1, depth)
    rows = torch.arange(flat.shape[0], device=x.device)[:, None].expand(index.shape[:2])
    parts = [_from_start(index[..., k], flat.shape[k + 1]) for k in range(depth)]
    kept = flat.shape[depth + 1 :]
    return flat[(rows, *parts)].reshape(batch + indices.shape[batch_dims:-1] + kept)


def scatter_elements(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    *,
    axis: int = 0,
    reduction: Literal["none", "add", "mul", "max", "min"] = "none",
) -> Tensor:
    """``x`` with elements replaced by, or combined with, updates at indices along ``axis``."""
    index = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    name = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, index, updates, name, include_self=True)


def scatter_nd(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    *,
    reduction: Literal["none", "add", "mul", "max", "min"] = "none",
) -> Tensor:
    """``x`` with slices replaced by, or combined with, updates at index tuples."""
    depth = indices.shape[-1]
    parts = tuple(_from_start(indices[..., k], x.shape[k]) for k in range(depth))
    if reduction in ("none", "add"):
        return x.index_put(parts, updates, accumulate=reduction == "add")
    strides = [math.prod(x.shape[k + 1 : depth]) for k in range(depth)]
    rows = sum((part * step for part, step in zip(parts, strides, strict=True)), start=0)
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    source = updates.reshape(-1, flat.shape[1])
    index = torch.as_tensor(rows).reshape(-1, 1).expand_as(source)
    name = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return flat.scatter_reduce(0, index, source, name, include_self=True).reshape(x.shape)


def expand(x: Tensor, shape: Ints) -> Tensor:
    """Broadcast against ``shape``, both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


def tile(x: Tensor, repeats: Ints) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(ints(repeats))


def pad(
    x: Tensor,
    pads: Ints,
    constant_value: Number = None,
    axes: Ints = None,
    *,
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
    value: float = 0.0,
) -> Tensor:
    """Widen axes: all begins, then all ends; negative widths cut. Mode as ``numpy.pad``."""
    widths = ints(pads)
    along = ints(axes) if axes is not None else list(range(x.ndim))
    for axis, begin, end in zip(along, widths[: len(along)], widths[len(along) :], strict=True):
        if begin == end == 0:
            continue
        axis = axis % x.ndim
        if mode == "constant":
            behind = [0, 0] * (x.ndim - 1 - axis)
            x = functional.pad(x, [*behind, begin, end], value=float(number(constant_value, value)))
        else:
            x = x.index_select(axis, _padded_index(x, axis, begin, end, mode))
    return x


def _padded_index(x: Tensor, axis: int, begin: int, end: int, mode: str) -> Tensor:
    length = x.shape[axis]
    index = torch.arange(-begin, length + end, device=x.device)
    if mode == "edge":
        return index.clamp(0, length - 1)
    if mode == "wrap":
        return index % length
    period = max(1, 2 * (length - 1))
    return (length - 1) - ((index % period) - (length - 1)).abs()


def constant_of_shape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    """One value, float32 0 by default, in a given shape."""
    if value is None:
        return torch.zeros(ints(shape))
    return value.reshape(()).expand(ints(shape)).clone()


def arange(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """``start + k delta`` below ``limit``."""
    first, last, step = start.item(), limit.item(), delta.item()
    return torch.arange(first, last, step, dtype=start.dtype, device=start.device)


def depth_to_space(x: Tensor, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Tensor:
    """Move channels into blocks of pixels."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Move blocks of pixels into channels."""
    n, c, h, w = x.shape
    b = blocksize
    y = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


def triangle(x: Tensor, k: Ints = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of the last two axes, shifted by ``k``."""
    shift = ints(k)[0] if k is not None else 0
    return x.triu(shift) if upper else x.tril(shift)


def one_hot(indices: Tensor, depth: Ints, values: Tensor, *, axis: int = -1) -> Tensor:
    """``values[1]`` where the new axis equals the index, else ``values[0]``."""
    (count,) = ints(depth)
    index = indices.to(torch.int64).unsqueeze(axis)
    shape = [1] * index.ndim
    shape[axis] = count
    steps = torch.arange(count, device=indices.device).reshape(shape)
    hit = torch.where(index < 0, index + count, index) == steps
    return torch.where(hit, values[1], values[0])


def non_zero(x: Tensor) -> Tensor:
    """Indices of the elements that are not 0, ``[rank, count]``."""
    return torch.nonzero(x).T


OPERATORS: Table = {
    ("", "Shape", 1): shape,
    ("", "Size", 1): size,
    ("", "Identity", 1): identity,
    ("", "Reshape", 5): reshape,
    ("", "Flatten", 1): flatten,
    ("", "Transpose", 1): transpose,
    ("", "Squeeze", 1): squeeze,
    ("", "Unsqueeze", 1): unsqueeze,
    ("", "Concat", 4): concat,
    ("", "Split", 2): split,
    ("", "Slice", 1): slice_,
    ("", "Gather", 1): gather,
    ("", "GatherElements", 11): gather_elements,
    ("", "GatherND", 11): gather_nd,
    ("", "ScatterElements", 11): scatter_elements,
    ("", "ScatterND", 11): scatter_nd,
    ("", "Expand", 8): expand,
    ("", "Tile", 6): tile,
    ("", "Pad", 2): pad,
    ("", "ConstantOfShape", 9): constant_of_shape,
    ("", "Range", 11): arange,
    ("", "DepthToSpace", 1): depth_to_space,
    ("", "SpaceToDepth", 1): space_to_depth,
    ("", "Trilu", 14): triangle,
    ("", "OneHot", 9): one_hot,
    ("", "NonZero", 9): non_zero,
}

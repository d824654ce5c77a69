"""Reductions over axes, and those that say where.

``axes`` is an attribute or an input, by version; no axes means all, unless
``noop_with_empty_axes``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from qcompiler.lift.operands import Ints, Table, ints

__all__ = ["OPERATORS"]

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _over(
    reduce: Reduce, x: Tensor, axes: Ints, keepdims: int, noop_with_empty_axes: int
) -> Tensor:
    chosen = tuple(ints(axes))
    if not chosen and noop_with_empty_axes:
        return x
    return reduce(x, chosen or tuple(range(x.ndim)), bool(keepdims)) if x.ndim else x


def reduce_mean(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Mean."""
    return _over(torch.mean, x, axes, keepdims, noop_with_empty_axes)


def reduce_sum(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum, in the operand's type."""
    return _over(torch.sum, x, axes, keepdims, noop_with_empty_axes).to(x.dtype)


def reduce_max(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Largest."""
    return _over(torch.amax, x, axes, keepdims, noop_with_empty_axes)


def reduce_min(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Smallest."""
    return _over(torch.amin, x, axes, keepdims, noop_with_empty_axes)


def reduce_prod(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Product, in the operand's type."""
    return _over(_product, x, axes, keepdims, noop_with_empty_axes).to(x.dtype)


def reduce_l1(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of absolute values."""
    return reduce_sum(x.abs(), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes)


def reduce_l2(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Root of the sum of squares."""
    return reduce_sum_square(
        x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes
    ).sqrt()


def reduce_sum_square(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of squares."""
    return reduce_sum(
        x.square(), axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes
    )


def reduce_log_sum(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum."""
    return reduce_sum(x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes).log()


def reduce_log_sum_exp(
    x: Tensor, axes: Ints = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum of exponentials, without overflow."""
    return _over(torch.logsumexp, x, axes, keepdims, noop_with_empty_axes)


def _product(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    for axis in sorted((item % x.ndim for item in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the largest along ``axis``: the first such, or the last."""
    if not select_last_index:
        return x.argmax(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))


def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Index of the smallest along ``axis``: the first such, or the last."""
    if not select_last_index:
        return x.argmin(axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))


def top_k(
    x: Tensor,
    k: Ints,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
    outputs: Literal[1, 2] = 2,
) -> Any:
    """The ``k`` largest or smallest along ``axis``, and their indices; of equals the first."""
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    found = values.narrow(axis, 0, ints(k)[0]), indices.narrow(axis, 0, ints(k)[0])
    return found[0] if outputs == 1 else found


def cumulative_sum(x: Tensor, axis: Ints, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along ``axis``, with or without the element itself, from either end."""
    (along,) = ints(axis)
    y = x.flip(along) if reverse else x
    y = torch.cumsum(y, along).to(x.dtype) - (y if exclusive else 0)
    return y.flip(along) if reverse else y


OPERATORS: Table = {
    ("", "ReduceMean", 1): reduce_mean,
    ("", "ReduceSum", 1): reduce_sum,
    ("", "ReduceMax", 1): reduce_max,
    ("", "ReduceMin", 1): reduce_min,
    ("", "ReduceProd", 1): reduce_prod,
    ("", "ReduceL1", 1): reduce_l1,
    ("", "ReduceL2", 1): reduce_l2,
    ("", "ReduceSumSquare", 1): reduce_sum_square,
    ("", "ReduceLogSum", 1): reduce_log_sum,
    ("", "ReduceLogSumExp", 1): reduce_log_sum_exp,
    ("", "ArgMax", 1): arg_max,
    ("", "ArgMin", 1): arg_min,
    ("", "TopK", 1): top_k,
    ("", "CumSum", 11): cumulative_sum,
}

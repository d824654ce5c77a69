"""Convolution and pooling over any number of spatial axes.

``pads`` are all begins, then all ends. torch pads both ends alike, so unequal widths become an
explicit padding of the operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.lift.operands import Ints, Table, ints

__all__ = ["OPERATORS", "conv", "resolve_pads"]

AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Cross-correlation of ``x [n, in, ...]`` with ``w [out, in / group, ...]``, plus ``b``."""
    rank = x.ndim - 2
    dilation, stride = ints(dilations) or [1] * rank, ints(strides) or [1] * rank
    kernel = list(w.shape[2:])
    begins, ends = resolve_pads(x.shape[2:], kernel, auto_pad, dilation, pads, stride)
    if begins != ends:
        x, begins = _padded(x, begins, ends, 0.0), [0] * rank
    return _CONV[rank](x, w, b, stride, begins, dilation, group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Gradient of a convolution: computed whole, then cut by ``pads``."""
    rank = x.ndim - 2
    dilation, stride = ints(dilations) or [1] * rank, ints(strides) or [1] * rank
    extra = ints(output_padding) or [0] * rank
    y = _CONV_TRANSPOSE[rank](x, w, None, stride, 0, 0, group, dilation)
    begins, ends = _split_pads(pads, rank)
    wanted = ints(output_shape)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = [size * step for size, step in zip(x.shape[2:], stride, strict=True)]
    if wanted:
        sizes = zip(y.shape[2:], extra, wanted, strict=True)
        totals = [size + more - want for size, more, want in sizes]
        small, large = [each // 2 for each in totals], [each - each // 2 for each in totals]
        begins, ends = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    ends = [end - more for end, more in zip(ends, extra, strict=True)]
    y = _padded(y, [-item for item in begins], [-item for item in ends], 0.0)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: int = 0,
    strides: Ints = None,
) -> Tensor:
    """Largest element of each window; padding never wins."""
    kernel, rank = ints(kernel_shape), x.ndim - 2
    dilation, stride = ints(dilations) or [1] * rank, ints(strides) or [1] * rank
    begins, ends = resolve_pads(x.shape[2:], kernel, auto_pad, dilation, pads, stride)
    if ceil_mode:
        ends = _widen(x, kernel, dilation, stride, begins, ends)
    x = _padded(x, begins, ends, float("-inf"))
    return _MAX_POOL[rank](x, kernel, stride, 0, dilation)


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Ints,
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    """Mean of each window; padding counts only when asked."""
    kernel, rank = ints(kernel_shape), x.ndim - 2
    dilation, stride = ints(dilations) or [1] * rank, ints(strides) or [1] * rank
    begins, ends = resolve_pads(x.shape[2:], kernel, auto_pad, dilation, pads, stride)
    if not (any(begins) or any(ends) or ceil_mode) and set(dilation) <= {1}:
        return _AVERAGE_POOL[rank](x, kernel, stride)
    wide = _widen(x, kernel, dilation, stride, begins, ends) if ceil_mode else ends
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_include_pad:  # what ceil_mode reaches beyond the padding is never counted
        counted = _padded(counted, begins, ends, 1.0)
        counted = _padded(counted, [0] * rank, _difference(wide, ends), 0.0)
    else:
        counted = _padded(counted, begins, wide, 0.0)
    x = _padded(x, begins, wide, 0.0)
    return _window_sum(x, kernel, stride, dilation) / _window_sum(counted, kernel, stride, dilation)


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all spatial axes, which stay with size 1."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """Largest over all spatial axes, which stay with size 1."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def _split_pads(pads: Ints, rank: int) -> tuple[list[int], list[int]]:
    widths = ints(pads) or [0] * (2 * rank)
    return widths[:rank], widths[rank:]


def resolve_pads(
    sizes: Sequence[int],
    kernel: list[int],
    auto_pad: str,
    dilation: list[int],
    pads: Ints,
    stride: list[int],
) -> tuple[list[int], list[int]]:
    """Begins and ends; SAME gives ``ceil(size / stride)`` outputs."""
    if auto_pad in ("NOTSET", "VALID"):
        return _split_pads(pads if auto_pad == "NOTSET" else None, len(kernel))
    small, large = [], []
    for size, k, d, s in zip(sizes, kernel, dilation, stride, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        small.append(total // 2)
        large.append(total - total // 2)
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _padded(x: Tensor, begins: list[int], ends: list[int], value: float) -> Tensor:
    if not any(begins) and not any(ends):
        return x
    widths = [width for pair in zip(begins[::-1], ends[::-1], strict=True) for width in pair]
    return functional.pad(x, widths, value=value)


def _widen(
    x: Tensor,
    kernel: list[int],
    dilation: list[int],
    stride: list[int],
    begins: list[int],
    ends: list[int],
) -> list[int]:
    """Ends for which rounding down gives what ``ceil_mode`` gives.

    A last window that would start in the end padding is left out, as the ONNX specification says.
    """
    wide = []
    for size, k, d, s, begin, end in zip(
        x.shape[2:], kernel, dilation, stride, begins, ends, strict=True
    ):
        reach = (k - 1) * d + 1
        count = -(-(size + begin + end - reach) // s) + 1
        count -= (count - 1) * s >= size + begin
        wide.append(max(end, (count - 1) * s + reach - size - begin))
    return wide


def _difference(a: list[int], b: list[int]) -> list[int]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _window_sum(x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
    alone = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[len(kernel)](alone, ones, None, stride, 0, dilation)
    return y.reshape(*x.shape[:2], *y.shape[2:])


OPERATORS: Table = {
    ("", "Conv", 1): conv,
    ("", "ConvTranspose", 1): conv_transpose,
    ("", "MaxPool", 1): max_pool,
    ("", "AveragePool", 1): average_pool,
    ("", "GlobalAveragePool", 1): global_average_pool,
    ("", "GlobalMaxPool", 1): global_max_pool,
}

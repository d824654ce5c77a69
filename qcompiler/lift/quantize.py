"""ONNX quantization operators, and fake quantization with its gradients.

The ONNX operators give true integers and so have no gradient. Fake quantization computes the same
numbers in float and lets gradients through rounding as if it were not there (straight-through,
Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from qcompiler.lift.operands import Table, torch_dtype

__all__ = [
    "OPERATORS",
    "fake_quantize",
    "fake_quantize_dynamic",
    "fake_quantize_float8",
    "round_softly",
    "round_straight_through",
]

_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}


class _Round(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is that of the identity."""
    return _Round.apply(x)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """``(clip(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale``.

    The gradient of ``x`` is 1 inside the range and 0 outside. That of ``scale`` is
    ``round(x / scale) - x / scale`` inside and ``q - zero_point`` outside: LSQ's (Esser et al.
    2020, arXiv 1902.08153, eq. 3), up to the factor that an optimizer may want.

    Args:
        x: Any shape.
        scale: Float, > 0, broadcast against ``x``.
        zero_point: Float integers, broadcast against ``x``.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    q = round_straight_through(x / scale) + zero_point
    return (q.clamp(qmin, qmax) - zero_point) * scale


def fake_quantize_dynamic(
    x: Tensor, qmin: int, qmax: int, symmetric: bool, per_token: bool
) -> Tensor:
    """Fake quantization with the range of ``x`` itself, of the whole or of each last-axis row.

    The range always holds 0. Gradients run through the range too, as they do at run time.
    """
    tiny = torch.finfo(x.dtype).tiny
    if symmetric:
        bound = x.abs().amax(-1, keepdim=True) if per_token else x.abs().amax()
        zero_point = torch.zeros_like(bound)
        half = (qmax - qmin) // 2
        scale = (bound / half).clamp(min=tiny)
        return fake_quantize(x, scale, zero_point, -half, half)
    lo = (x.amin(-1, keepdim=True) if per_token else x.amin()).clamp(max=0.0)
    hi = (x.amax(-1, keepdim=True) if per_token else x.amax()).clamp(min=0.0)
    scale = ((hi - lo) / (qmax - qmin)).clamp(min=tiny)
    zero_point = torch.round(qmin - lo.detach() / scale.detach()).clamp(qmin, qmax)
    return fake_quantize(x, scale, zero_point, qmin, qmax)


def fake_quantize_float8(x: Tensor, scale: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """``x / scale`` rounded to an 8-bit float, saturating at ``largest``, times ``scale``."""
    inside = (x / scale).clamp(-largest, largest)
    rounded = inside.detach().to(dtype).to(x.dtype)
    return (inside + (rounded - inside.detach())) * scale


def round_softly(
    x: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Fake quantization that rounds up by a learned share ``offset`` in ``[0, 1]``.

    ``(clip(floor(x / scale) + offset + zero_point, qmin, qmax) - zero_point) * scale``: AdaRound's
    soft weight (Nagel et al. 2020, arXiv 2004.10568, eq. 22). The gradient goes to ``offset``.
    """
    q = torch.floor(x / scale).detach() + offset + zero_point
    return (q.clamp(qmin, qmax) - zero_point) * scale


def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """Integers (or 8-bit floats) of ``x``."""
    dtype = torch.uint8 if zero_point is None else zero_point.dtype
    dtype = torch_dtype(output_dtype) if output_dtype and zero_point is None else dtype
    wide = x / _along(scale, x, axis, block_size)
    if dtype.is_floating_point:
        largest = torch.finfo(dtype).max
        return wide.clamp(-largest, largest).to(dtype)
    zero = 0 if zero_point is None else _along(zero_point, x, axis, block_size).to(wide.dtype)
    return (torch.round(wide) + zero).clamp(*_RANGES[dtype]).to(dtype)


def dequantize_linear(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """``(q - zero_point) * scale``."""
    wide = q.to(torch.float32)
    if zero_point is not None:
        wide = wide - _along(zero_point, q, axis, block_size).to(torch.float32)
    y = wide * _along(scale, q, axis, block_size).to(torch.float32)
    return y.to(torch_dtype(output_dtype) if output_dtype else scale.dtype)


def dynamic_quantize_linear(x: Tensor, *, outputs: Literal[3] = 3) -> tuple[Tensor, ...]:
    """Unsigned 8-bit integers with the scale and zero point of the range of ``x``."""
    lo, hi = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (hi - lo) / 255
    zero_point = torch.round((0 - lo) / scale).clamp(0, 255)
    q = (torch.round(x / scale) + zero_point).clamp(0, 255)
    return q.to(torch.uint8), scale, zero_point.to(torch.uint8)


def _along(params: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Parameters shaped to broadcast against ``x``."""
    if params.numel() == 1:
        return params.reshape(())
    if block_size:
        wide = params.repeat_interleave(block_size, axis)
        return wide.narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return params.reshape(shape)


OPERATORS: Table = {
    ("", "QuantizeLinear", 10): quantize_linear,
    ("", "DequantizeLinear", 10): dequantize_linear,
    ("", "DynamicQuantizeLinear", 11): dynamic_quantize_linear,
}

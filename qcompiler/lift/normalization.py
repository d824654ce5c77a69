"""Normalization and softmax."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.lift.operands import Table, torch_dtype

__all__ = ["OPERATORS"]


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: Literal[1] = 1,
    training_mode: Literal[0] = 0,
) -> Tensor:
    """Per channel, with the recorded mean and variance."""
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Per channel, with the mean and variance of each sample."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: Literal[1, 2, 3] = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Over all axes from ``axis`` on; also the mean and the inverse deviation when asked."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    shape = x.shape[axes[0] :]
    if outputs == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    found = (y if bias is None else y + bias, mean, inverse)
    return found[0] if outputs == 1 else found[:outputs]


def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over all axes from ``axis`` on."""
    rows = x.to(torch_dtype(stash_type)).flatten(axis % x.ndim)
    normalized: Tensor = _NormalizedRows.apply(rows, epsilon)
    return normalized.view(x.shape).to(x.dtype) * scale


class _NormalizedRows(torch.autograd.Function):  # type: ignore[misc]
    """``y = r x`` with ``r = 1 / sqrt(mean(x^2) + epsilon)``; ``dL/dx = r (g - y mean(g y))``.

    torch 2.13 has no kernel for it on CPUs: its tape takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return (y * along).sub_(grad).mul_(-inverse), None


def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    """Layer normalization of a sum."""
    both = x + skip if bias is None else x + skip + bias
    return functional.layer_norm(both, both.shape[-1:], gamma, beta, epsilon)


def skip_rms_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    outputs: Literal[1, 4] = 1,
) -> Tensor | tuple[Tensor, ...]:
    """RMS normalization of a sum; output 3 is the sum. Outputs 1 and 2 are for training."""
    both = x + skip if bias is None else x + skip + bias
    y = rms_norm(both, gamma, epsilon=epsilon)
    return y if outputs == 1 else (y, both.new_empty(0), both.new_empty(0), both)


def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Per group of channels; one scale and bias for each channel."""
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def group_norm_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Per group of channels; one scale and bias for each group."""
    each = x.shape[1] // num_groups
    wide = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, num_groups, *wide, epsilon)


def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Divide by a power of the squares' sum over neighbouring channels."""
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = x.square().movedim(1, -1)
    summed = functional.pad(squares, [before, after]).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * summed) ** beta


def lp_norm(x: Tensor, *, axis: int = -1, p: Literal[1, 2] = 2) -> Tensor:
    """Divide by the norm along ``axis``."""
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance_norm(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """Subtract the mean and divide by the deviation over ``axes``."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Along one axis."""
    return torch.softmax(x, axis)


def softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all axes from ``axis`` on."""
    return torch.softmax(_rows(x, axis), -1).reshape(x.shape)


def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along one axis."""
    return torch.log_softmax(x, axis)


def log_softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    """Before opset 13: over all axes from ``axis`` on."""
    return torch.log_softmax(_rows(x, axis), -1).reshape(x.shape)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first maximum along the axis, 0 elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _rows(x: Tensor, axis: int) -> Tensor:
    axis = axis % x.ndim
    return x.reshape(*x.shape[:axis], -1)


OPERATORS: Table = {
    ("", "BatchNormalization", 7): batch_norm,
    ("", "InstanceNormalization", 6): instance_norm,
    ("", "LayerNormalization", 17): layer_norm,
    ("", "LayerNormalization", 1): layer_norm,
    ("", "RMSNormalization", 23): rms_norm,
    ("", "SimplifiedLayerNormalization", 1): rms_norm,
    ("", "GroupNormalization", 18): group_norm_18,
    ("", "GroupNormalization", 21): group_norm,
    ("", "LRN", 1): local_response_norm,
    ("", "LpNormalization", 1): lp_norm,
    ("", "MeanVarianceNormalization", 9): mean_variance_norm,
    ("", "Softmax", 1): softmax_1,
    ("", "Softmax", 13): softmax,
    ("", "LogSoftmax", 1): log_softmax_1,
    ("", "LogSoftmax", 13): log_softmax,
    ("", "Hardmax", 13): hardmax,
    ("com.microsoft", "SkipLayerNormalization", 1): skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization", 1): skip_rms_norm,
}

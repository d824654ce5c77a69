"""Modules that stand on the edges of a lifted graph and quantize what flows there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qcompiler.lift.quantize import (
    fake_quantize,
    fake_quantize_dynamic,
    fake_quantize_float8,
    round_softly,
)
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import Granularity, QSpec

__all__ = ["STRETCH", "DynamicFakeQuantize", "FakeQuantize", "GivenIntegers", "LearnedRounding"]

STRETCH = (-0.1, 1.1)  # gamma and zeta of AdaRound's rectified sigmoid (arXiv 2004.10568, eq. 23)


class FakeQuantize(nn.Module):  # type: ignore[misc]
    """Quantize and dequantize with given parameters; the scale may be learned.

    Attributes:
        scale: One float for each tile of the spec; a parameter when it is learned.
        zero_point: Integers as floats, shape of ``scale``.
        spec: How the edge is quantized.
    """

    def __init__(
        self,
        scale: npt.NDArray[np.floating],
        zero_point: npt.NDArray[np.integer] | None,
        spec: QSpec,
        *,
        learn_scale: bool = False,
    ) -> None:
        """Take parameters that broadcast against the tensor, or BLOCK's one per group."""
        super().__init__()
        self.spec = spec
        start = torch.from_numpy(np.array(scale, np.float32))
        zero = np.zeros_like(scale) if zero_point is None else zero_point
        if learn_scale:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)
        self.register_buffer("zero_point", torch.from_numpy(np.array(zero, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """The values that the integers of ``x`` stand for."""
        scale = _expand(self.scale, x, self.spec)
        if self.spec.is_float8:
            dtype = _float8(self.spec)
            return fake_quantize_float8(x, scale, torch.finfo(dtype).max, dtype)
        zero_point = _expand(self.zero_point, x, self.spec)
        return fake_quantize(x, scale, zero_point, self.spec.qmin, self.spec.qmax)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return str(self.spec)


class GivenIntegers(nn.Module):  # type: ignore[misc]
    """The values of given integers in place of a weight; the gradient goes to the weight."""

    def __init__(self, tensor: QTensor) -> None:
        """Take the quantized weight."""
        super().__init__()
        self.spec = tensor.spec
        self.register_buffer("quantized", torch.from_numpy(tensor.dequantize()))

    def forward(self, weight: Tensor) -> Tensor:
        """The values that the integers stand for."""
        return self.quantized + (weight - weight.detach())

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return str(self.spec)


class DynamicFakeQuantize(nn.Module):  # type: ignore[misc]
    """Quantize and dequantize with the range that the tensor has at run time."""

    def __init__(self, spec: QSpec) -> None:
        """Take a dynamic spec: per tensor or per token."""
        super().__init__()
        assert spec.dynamic, f"{spec} is not dynamic"
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """The values that the integers of ``x`` stand for."""
        per_token = self.spec.granularity is Granularity.TOKEN
        return fake_quantize_dynamic(
            x, self.spec.qmin, self.spec.qmax, self.spec.symmetric, per_token
        )

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return str(self.spec)


class LearnedRounding(nn.Module):  # type: ignore[misc]
    """AdaRound's weight quantizer: the scale is fixed, each weight learns to go down or up.

    The weight becomes ``scale * (clip(floor(w / scale) + h(V) + zero_point) - zero_point)`` with
    ``h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)``; ``V`` starts where ``h`` is the fraction cut off,
    so that the float weight is computed first (Nagel et al. 2020, arXiv 2004.10568, eq. 22-23).

    Attributes:
        logits: ``V``, shape of the weight.
        hard: Round ``h`` to 0 or 1, as the integers will be.
    """

    def __init__(self, weight: Tensor, start: QTensor) -> None:
        """Take the float weight and its scales and zero points; ``start.q`` is not read."""
        super().__init__()
        self.spec = start.spec
        self.hard = False
        zero = np.zeros_like(start.scale) if start.zero_point is None else start.zero_point
        self.register_buffer("scale", torch.from_numpy(np.array(start.scale, np.float32)))
        self.register_buffer("zero_point", torch.from_numpy(np.array(zero, np.float32)))
        cut = weight.detach() / _expand(self.scale, weight, self.spec)
        self.logits = nn.Parameter(_logits(cut - torch.floor(cut)))

    def offset(self) -> Tensor:
        """``h(V)``, in ``[0, 1]``; 0 or 1 when ``hard``."""
        low, high = STRETCH
        h = (torch.sigmoid(self.logits) * (high - low) + low).clamp(0, 1)
        return (h >= 0.5).to(h.dtype) if self.hard else h

    def indecision(self, beta: float) -> Tensor:
        """``sum(1 - |2h - 1|^beta)``: 0 when every weight has decided (eq. 24)."""
        return (1 - (2 * self.offset() - 1).abs().pow(beta)).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """The soft (or hard) quantized weight."""
        scale = _expand(self.scale, weight, self.spec)
        zero_point = _expand(self.zero_point, weight, self.spec)
        offset = self.offset()
        return round_softly(weight, scale, zero_point, offset, self.spec.qmin, self.spec.qmax)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return str(self.spec)

    def to_qtensor(self, weight: Tensor) -> QTensor:
        """Integers by hard rounding."""
        with torch.no_grad():
            up = (self.offset() >= 0.5).to(weight.dtype)
            zero_point = _expand(self.zero_point, weight, self.spec)
            q = torch.floor(weight / _expand(self.scale, weight, self.spec)) + up + zero_point
            q = q.clamp(self.spec.qmin, self.spec.qmax).to(torch.int32)
        storage = (
            np.int32
            if self.spec.dtype.bitwidth > 8
            else (np.int8 if self.spec.is_signed else np.uint8)
        )
        zero = self.zero_point.numpy().astype(np.int32)
        return QTensor(
            q.numpy().astype(storage),
            self.scale.numpy().copy(),
            None if self.spec.is_signed and not zero.any() else zero,
            self.spec,
        )


def _logits(fraction: Tensor) -> Tensor:
    """``V`` for which ``h(V)`` is ``fraction``."""
    low, high = STRETCH
    return torch.logit((fraction - low) / (high - low))


def _expand(params: Tensor, x: Tensor, spec: QSpec) -> Tensor:
    """Block parameters repeated over their groups; others broadcast as they are."""
    if spec.group_size is None or spec.axis is None:
        return params
    axis = spec.axis % x.ndim
    return params.repeat_interleave(spec.group_size, axis).narrow(axis, 0, x.shape[axis])


def _float8(spec: QSpec) -> torch.dtype:
    return torch.float8_e4m3fn if str(spec).startswith("e4m3") else torch.float8_e5m2

"""Operators that compute each element on its own, with ONNX broadcasting."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.diagnostics import Code, QcError
from qcompiler.lift.operands import Number, Table, number, torch_dtype

__all__ = ["OPERATORS"]


def div(a: Tensor, b: Tensor) -> Tensor:
    """Quotient; that of integers is cut off towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Power in the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the divisor's sign, or as C's ``fmod``."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def maximum(*xs: Tensor) -> Tensor:
    """Largest of all operands."""
    return functools.reduce(torch.maximum, xs)


def minimum(*xs: Tensor) -> Tensor:
    """Smallest of all operands."""
    return functools.reduce(torch.minimum, xs)


def total(*xs: Tensor) -> Tensor:
    """Sum of all operands."""
    return functools.reduce(torch.add, xs)


def mean(*xs: Tensor) -> Tensor:
    """Mean of all operands."""
    return total(*xs) / len(xs)


def clip(x: Tensor, min: Number = None, max: Number = None) -> Tensor:
    """Bound from below, then from above."""
    if min is None and max is None:
        return x
    if not isinstance(min, Tensor) and not isinstance(max, Tensor):
        return x.clamp(min, max)
    x = x if min is None else torch.maximum(x, torch.as_tensor(min).to(x))
    return x if max is None else torch.minimum(x, torch.as_tensor(max).to(x))


def gelu(x: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """``x * Phi(x)``."""
    return functional.gelu(x, approximate=approximate)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh form, after an optional bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The exact form, after a bias."""
    return functional.gelu(x + bias)


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """``x * sigmoid(alpha x)``."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x * sigmoid(alpha x)``."""
    return quick_gelu(x, alpha=alpha)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """``x`` where positive, else ``alpha x``."""
    return functional.leaky_relu(x, alpha)


def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where positive, else ``slope x``."""
    return torch.where(x >= 0, x, slope * x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where above ``alpha``, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha (exp(x) - 1)`` where negative."""
    return functional.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha (exp(x / alpha) - 1)`` where negative."""
    return functional.celu(x, alpha)


def selu(
    x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    """``gamma`` times Elu."""
    return gamma * functional.elu(x, alpha)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha x + beta`` within 0 and 1."""
    return (alpha * x + beta).clamp(0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """``x * HardSigmoid(x, 1/6, 1/2)``."""
    return functional.hardswish(x)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` without overflow."""
    return torch.logaddexp(x, torch.zeros_like(x))


def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Towards zero by ``bias`` outside ``[-lambd, lambd]``, 0 inside."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether infinite, of the asked signs."""
    wanted = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        wanted = wanted | torch.isneginf(x)
    return wanted | torch.isposinf(x) if detect_positive else wanted


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: Literal["up"] = "up") -> Tensor:
    """Convert the type; to 8-bit floats by saturation unless told otherwise."""
    dtype = torch_dtype(to)
    if dtype in _FLOAT8_LARGEST and saturate:
        return x.clamp(-_FLOAT8_LARGEST[dtype], _FLOAT8_LARGEST[dtype]).to(dtype)
    return x.to(dtype)


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1) -> Tensor:
    """Convert to the type of the other operand."""
    return x.to(like.dtype)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where true, else ``b``."""
    return torch.where(condition, a, b)


def dropout(
    x: Tensor,
    ratio: Number = None,
    training_mode: Number = None,
    *,
    seed: int = 0,
    outputs: Literal[1, 2] = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Nothing, as in inference; the mask keeps all."""
    if number(training_mode, 0):
        raise QcError(
            Code.NOT_LIFTABLE,
            "Dropout",
            "it is in training mode, which draws at random",
            "export the model in inference mode (module.eval())",
            op="Dropout",
        )
    return x if outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


_FLOAT8_LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
# Legacy broadcasting (an ``axis`` attribute) ended with opset 7, for the bitwise names with 18.
OPERATORS: Table = {
    ("", "Add", 7): torch.add,
    ("", "Sub", 7): torch.sub,
    ("", "Mul", 7): torch.mul,
    ("", "Div", 7): div,
    ("", "Pow", 7): power,
    ("", "Mod", 10): mod,
    ("", "Max", 8): maximum,
    ("", "Min", 8): minimum,
    ("", "Sum", 8): total,
    ("", "Mean", 8): mean,
    ("", "Neg", 6): torch.neg,
    ("", "Abs", 6): torch.abs,
    ("", "Sqrt", 6): torch.sqrt,
    ("", "Exp", 6): torch.exp,
    ("", "Log", 6): torch.log,
    ("", "Reciprocal", 6): torch.reciprocal,
    ("", "Sign", 9): torch.sign,
    ("", "Floor", 6): torch.floor,
    ("", "Ceil", 6): torch.ceil,
    ("", "Round", 11): torch.round,
    ("", "Erf", 9): torch.erf,
    ("", "Sin", 7): torch.sin,
    ("", "Cos", 7): torch.cos,
    ("", "Tan", 7): torch.tan,
    ("", "Asin", 7): torch.asin,
    ("", "Acos", 7): torch.acos,
    ("", "Atan", 7): torch.atan,
    ("", "Sinh", 9): torch.sinh,
    ("", "Cosh", 9): torch.cosh,
    ("", "Tanh", 6): torch.tanh,
    ("", "Asinh", 9): torch.asinh,
    ("", "Acosh", 9): torch.acosh,
    ("", "Atanh", 9): torch.atanh,
    ("", "Sigmoid", 6): torch.sigmoid,
    ("", "Relu", 6): torch.relu,
    ("", "LeakyRelu", 6): leaky_relu,
    ("", "PRelu", 7): parametric_relu,
    ("", "ThresholdedRelu", 10): thresholded_relu,
    ("", "Elu", 6): elu,
    ("", "Celu", 12): celu,
    ("", "Selu", 6): selu,
    ("", "HardSigmoid", 6): hard_sigmoid,
    ("", "HardSwish", 14): hard_swish,
    ("", "Softplus", 1): softplus,
    ("", "Softsign", 1): functional.softsign,
    ("", "Mish", 18): functional.mish,
    ("", "Shrink", 9): shrink,
    ("", "Gelu", 20): gelu,
    ("", "Swish", 24): swish,
    ("", "Clip", 6): clip,
    ("", "Equal", 7): torch.eq,
    ("", "Greater", 7): torch.gt,
    ("", "GreaterOrEqual", 12): torch.ge,
    ("", "Less", 7): torch.lt,
    ("", "LessOrEqual", 12): torch.le,
    ("", "And", 7): torch.logical_and,
    ("", "Or", 7): torch.logical_or,
    ("", "Xor", 7): torch.logical_xor,
    ("", "Not", 1): torch.logical_not,
    ("", "BitwiseAnd", 18): torch.bitwise_and,
    ("", "BitwiseOr", 18): torch.bitwise_or,
    ("", "BitwiseXor", 18): torch.bitwise_xor,
    ("", "BitwiseNot", 18): torch.bitwise_not,
    ("", "Where", 9): where,
    ("", "IsNaN", 9): torch.isnan,
    ("", "IsInf", 10): is_infinite,
    ("", "Cast", 6): cast,
    ("", "CastLike", 15): cast_like,
    ("", "Dropout", 7): dropout,
    ("com.microsoft", "Gelu", 1): gelu,
    ("com.microsoft", "FastGelu", 1): fast_gelu,
    ("com.microsoft", "BiasGelu", 1): bias_gelu,
    ("com.microsoft", "QuickGelu", 1): quick_gelu,
}

"""What the layers of a probe are made of: random tensors in low precision, and Q/DQ around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.schemes import QSpec
from qcompiler.targets.cost import Work

__all__ = [
    "EXACT",
    "MICROSOFT",
    "NOTHING",
    "ROUNDED",
    "STEP",
    "Array",
    "Build",
    "Probed",
    "Stored",
    "dequantized",
    "output_parameters",
    "qdq_output",
    "qdq_weight",
    "random_activation",
    "random_weight",
    "rounded",
]

Array = npt.NDArray[Any]
Build = Callable[[Tape, Mapping[str, ir.Value]], ir.Value]

MICROSOFT = "com.microsoft"
_X_SCALE = np.float32(0.02)
# Tolerances, as shares of the largest expected value. Float accumulation alone differs by 1e-6;
# one step of an 8-bit output is 1/255; MatMulNBits at accuracy level 4 rounds activations to 8
# bits within blocks, which costs about 1 % on uniform data.
EXACT = 1e-4
STEP = 1.01 / 255
ROUNDED = 0.03
NOTHING = np.ones(1, np.float32)  # stands for an output that nobody will compare


@dataclasses.dataclass(frozen=True)
class Probed:
    """A layer in three forms.

    Attributes:
        work: What it has to do, for the cost model.
        feeds: Inputs by form: "float", "ort", "qdq", and "kernel" where the conversion of its input
            is a part of "ort" but not of the kernel.
        builds: How each form is built from its inputs.
        expected: Output 0, dequantized, as numpy computes it.
        tolerance: Largest error allowed, as a share of the largest expected value.
        stored: Scale and zero point of the output where the "ort" form stores it as integers.
    """

    work: Work
    feeds: Mapping[str, Mapping[str, Array]]
    builds: Mapping[str, Build]
    expected: Array
    tolerance: float
    stored: tuple[float, int] | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
    """Integers with their parameters."""

    q: Array
    scale: Array
    zero_point: Array

    @property
    def real(self) -> npt.NDArray[np.float32]:
        """The floats that the integers stand for."""
        # weights are symmetric: their zero points, one per channel, are all 0
        zero = 0 if self.zero_point.ndim else int(self.zero_point)
        return np.asarray((self.q.astype(np.float32) - zero) * self.scale, dtype=np.float32)

    @property
    def parameters(self) -> tuple[float, int]:
        """Scale and zero point of a tensor that has one of each."""
        return float(self.scale), int(self.zero_point)


def random_activation(spec: QSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Stored:
    """All numbers of the type, the first row being the largest."""
    dtype = spec.dtype.numpy()
    q = rng.integers(spec.qmin, spec.qmax + 1, shape).astype(dtype)
    q.reshape(-1, shape[-1])[0] = spec.qmax  # a full row: where int16 sums would saturate
    middle = 0 if spec.is_signed else 2 ** (spec.dtype.bitwidth - 1)
    shift = 0 if spec.symmetric else 3
    return Stored(q, np.asarray(_X_SCALE), np.asarray(middle + shift, dtype=dtype))


def random_weight(
    spec: QSpec, shape: tuple[int, ...], axis: int, rng: np.random.Generator
) -> Stored:
    """A symmetric weight with one scale for each index of ``axis``."""
    q = rng.integers(spec.qmin, spec.qmax + 1, shape).astype(np.int8)
    first = [slice(None)] * len(shape)
    first[axis] = slice(0, 1)
    q[tuple(first)] = spec.qmax
    # small enough that outputs stay near 1
    scale = (rng.uniform(0.5, 1.0, shape[axis]) / 1000).astype(np.float32)
    wide = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return Stored(q, wide, np.zeros(shape[axis], np.int8))


def output_parameters(spec: QSpec, y: Array) -> tuple[Array, Array]:
    """Scale and zero point that hold all of ``y``."""
    dtype = spec.dtype.numpy()
    lo, hi = min(float(y.min()), 0.0), max(float(y.max()), 0.0)
    if spec.symmetric and spec.is_signed:
        return np.asarray(max(-lo, hi, 1e-6) / spec.qmax, np.float32), np.asarray(0, dtype)
    scale = max(hi - lo, 1e-6) / (spec.qmax - spec.qmin)
    return np.asarray(scale, np.float32), np.asarray(round(spec.qmin - lo / scale), dtype)


def dequantized(tape: Tape, x: ir.Value, tensor: Stored) -> ir.Value:
    """``x`` behind Q and DQ with the parameters of ``tensor``."""
    value: ir.Value = tape.op(
        "DequantizeLinear",
        tape.op("QuantizeLinear", x, tensor.scale, tensor.zero_point),
        tensor.scale,
        tensor.zero_point,
    )
    return value


def qdq_output(tape: Tape, y: ir.Value, scale: Array, zero_point: Array) -> ir.Value:
    """``y`` behind Q and DQ."""
    q = tape.op("QuantizeLinear", y, scale, zero_point)
    value: ir.Value = tape.op("DequantizeLinear", q, scale, zero_point)
    return value


def qdq_weight(tape: Tape, w: Stored, axis: int) -> ir.Value:
    """The weight behind a DQ."""
    value: ir.Value = tape.op("DequantizeLinear", w.q, w.scale.reshape(-1), w.zero_point, axis=axis)
    return value


def rounded(y: Array, scale: Array, zero_point: Array, spec: QSpec) -> Stored:
    """``y`` as the integers of ``spec``."""
    q = np.clip(np.rint(y / scale) + zero_point.astype(np.int64), spec.qmin, spec.qmax)
    return Stored(q, scale, zero_point)

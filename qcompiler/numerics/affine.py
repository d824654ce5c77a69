"""Quantization: scales and zero points from ranges, quantize, dequantize.

``q = clip(round(x / scale) + zero_point, qmin, qmax)`` with round-half-to-even, as ONNX
``QuantizeLinear`` defines it (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html). 8-bit
floats have a scale and no zero point, and another rounding: :mod:`qcompiler.numerics.float8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.codebooks import nearest_entry, to_codes
from qcompiler.numerics.float8 import is_float8, round_float8, to_float8
from qcompiler.schemes import QSpec

__all__ = [
    "Array",
    "IntArray",
    "affine_params",
    "clip_codes",
    "dequantize",
    "quantize",
    "quantize_as",
    "range_to_params",
    "round_trip",
]

_EXACT_BYTES = 2  # integers of so many bytes and their differences are exact in float32

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]


def affine_params(lo: Array, hi: Array, qmin: int, qmax: int) -> tuple[Array, IntArray]:
    """Scale and zero point that map ``[lo, hi]``, widened to hold 0, onto ``[qmin, qmax]``.

    Zero must be exact: padding and ReLU make it everywhere, so a zero that is off by a fraction of
    a step becomes a bias in every layer after it (Jacob et al. 2018, arXiv 1712.05877, 2.1).

    Args:
        lo: Smallest value, any shape.
        hi: Largest value, shape of ``lo``.
        qmin: Smallest integer.
        qmax: Largest integer.

    Returns:
        ``scale`` (float32, > 0) and ``zero_point`` (int32, in ``[qmin, qmax]``), shaped as ``lo``.

    Raises:
        ValueError: Some ``lo > hi``, or either is not finite.
    """
    lo = np.asarray(lo, np.float64)  # float64: hi - lo overflows float32 near its limits
    hi = np.asarray(hi, np.float64)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError("range holds NaN or infinity")
    if (lo > hi).any():
        raise ValueError("range has lo > hi")
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    scale = _positive((hi - lo) / (qmax - qmin))
    zero_point = np.clip(np.rint(qmin - lo / scale.astype(np.float64)), qmin, qmax)
    return scale, zero_point.astype(np.int32)


def range_to_params(lo: Array, hi: Array, spec: QSpec) -> tuple[Array, IntArray]:
    """Scale and zero point of ``[lo, hi]`` under ``spec``, symmetric or not.

    A symmetric spec uses ``max(|lo|, |hi|)``; its zero point is 0 for a signed type and
    mid-range (128 for uint8) for an unsigned one. An 8-bit float maps the bound to its largest
    value: ``scale = bound / 448`` for E4M3FN, ``bound / 57344`` for E5M2.
    """
    if not spec.symmetric:
        return affine_params(lo, hi, spec.qmin, spec.qmax)
    bound = np.maximum(np.abs(np.asarray(lo, np.float64)), np.abs(np.asarray(hi, np.float64)))
    if not np.isfinite(bound).all():
        raise ValueError("range holds NaN or infinity")
    scale = _positive(bound / (spec.qmax - spec.middle))
    return scale, np.full(scale.shape, spec.middle, np.int32)


def quantize(x: Array, scale: Array, zero_point: IntArray, qmin: int, qmax: int) -> IntArray:
    """Integers of ``x`` as int32; ``scale`` and ``zero_point`` broadcast against ``x``."""
    q = np.rint(np.asarray(x, np.float32) / scale) + zero_point
    return np.clip(q, qmin, qmax).astype(np.int32)


def quantize_as(x: Array, scale: Array, zero_point: IntArray, spec: QSpec) -> npt.NDArray[Any]:
    """The elements that store ``x`` under ``spec``: int32 for integers, 8-bit floats, or codes."""
    if spec.codebook:
        return to_codes(np.asarray(x, np.float32) / scale, spec.codebook)
    if spec.is_float8:
        with np.errstate(over="ignore"):  # infinity saturates like the rest
            return to_float8(np.asarray(x, np.float32) / scale, spec.dtype)
    return quantize(x, scale, zero_point, spec.qmin, spec.qmax)


def round_trip(x: Array, scale: Array, zero_point: IntArray, spec: QSpec) -> Array:
    """``x`` quantized and dequantized, float32; all parts in floats, nothing is stored."""
    if spec.codebook:
        steps = nearest_entry(x / scale, spec.codebook)
    elif spec.is_float8:
        steps = round_float8(x / scale, spec.dtype)
    else:
        steps = np.rint(x / scale)
        clip_codes(steps, zero_point, spec)
    steps *= scale
    return steps


def clip_codes(steps: Array, zero_point: IntArray, spec: QSpec) -> None:
    """Clip whole numbers, counted from the zero point, to those that have a code; in place.

    The bounds take the type of ``steps``: integers would have numpy compare in float64.
    """
    lo, hi = ((end - zero_point).astype(steps.dtype) for end in (spec.qmin, spec.qmax))
    np.clip(steps, lo, hi, out=steps)


def dequantize(q: npt.NDArray[Any], scale: Array, zero_point: IntArray) -> Array:
    """Float32 values that ``q``, integers or 8-bit floats, stands for."""
    if is_float8(q):
        return (q.astype(np.float32) * scale).astype(np.float32)
    if q.dtype.itemsize <= _EXACT_BYTES:
        steps: Array = np.subtract(q, zero_point, dtype=np.float32, casting="unsafe")
        return np.asarray(steps * scale, np.float32)
    return ((q.astype(np.int32) - zero_point).astype(np.float32) * scale).astype(np.float32)


def _positive(scale: Array) -> Array:
    """``scale`` as float32, at least the smallest normal number: a dead tensor has range 0."""
    tiny = float(np.finfo(np.float32).tiny)
    return np.maximum(scale, tiny).astype(np.float32)

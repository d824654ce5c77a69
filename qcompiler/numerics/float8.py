"""8-bit floats: rounding to them, saturating, and the elements that stand for them.

E4M3FN has 4 exponent and 3 mantissa bits, no infinity and one NaN of each sign, and reaches 448;
E5M2 has 5 and 2, infinities and NaNs, and reaches 57344 (Micikevicius et al. 2022, arXiv
2209.05433). Quantizing divides by the scale, rounds to the nearest value of the type (ties to even)
and saturates: what lies outside, infinities included, becomes the largest value, NaN stays NaN.
That is ``QuantizeLinear`` with its default ``saturate = 1``
(https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html). There is no zero point.

Arrays of 8-bit floats have the numpy type that ``onnx_ir`` gives their ONNX type (one of
``ml_dtypes``): one byte to an element, and ``astype(float32)`` gives the exact value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.schemes import QSpec

__all__ = ["is_float8", "round_float8", "to_float8"]

Floats = npt.NDArray[np.float32]

_TYPES = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
_NAMES = frozenset(str(dtype.numpy()) for dtype in _TYPES)


def is_float8(array: npt.NDArray[Any]) -> bool:
    """Whether the array holds 8-bit floats."""
    return array.dtype.name in _NAMES


def to_float8(x: npt.NDArray[np.floating[Any]], dtype: ir.DataType) -> npt.NDArray[Any]:
    """``x`` rounded to the nearest 8-bit float, ties to even, saturating; NaN stays NaN.

    Args:
        x: Any float type and shape; rounded from float32.
        dtype: FLOAT8E4M3FN or FLOAT8E5M2.

    Returns:
        Elements of ``dtype.numpy()``, shape of ``x``.
    """
    largest = np.float32(QSpec(dtype).qmax)
    inside = np.clip(np.asarray(x, np.float32), -largest, largest)
    return np.asarray(inside.astype(dtype.numpy()))


def round_float8(x: npt.NDArray[np.floating[Any]], dtype: ir.DataType) -> Floats:
    """The float32 values of :func:`to_float8`."""
    return to_float8(x, dtype).astype(np.float32)

"""Pack low-bit integers several to a byte.

ONNX stores 4-bit tensors two to a byte, and ``onnx_ir`` does that packing when it writes the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.numerics.affine import IntArray

__all__ = ["integer_tensor", "pack_bits", "unpack_bits"]

Bytes = npt.NDArray[np.uint8]


def pack_bits(q: IntArray, bits: int) -> Bytes:
    """Pack unsigned integers along the last axis, the first into the lowest bits of a byte.

    Args:
        q: ``[..., n]`` with values in ``[0, 2^bits)``.
        bits: 2, 4 or 8.

    Returns:
        uint8 ``[..., ceil(n * bits / 8)]``; unused high bits are 0.
    """
    codes: Bytes = np.ascontiguousarray(q, dtype=np.uint8)
    per_byte = 8 // bits
    if per_byte == 1:
        return codes
    missing = -codes.shape[-1] % per_byte
    if missing:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    packed: Bytes = codes[..., 0::per_byte].copy()
    for index in range(1, per_byte):
        packed |= codes[..., index::per_byte] << np.uint8(bits * index)
    return packed


def unpack_bits(packed: Bytes, bits: int, count: int) -> Bytes:
    """The first ``count`` integers of each row that :func:`pack_bits` packed."""
    per_byte = 8 // bits
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    spread = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    flat: Bytes = spread.reshape(*packed.shape[:-1], -1)[..., :count].astype(np.uint8)
    return flat


def integer_tensor(q: npt.NDArray[Any], dtype: ir.DataType) -> ir.Tensor[Any]:
    """``q`` as an ir tensor of ``dtype``; sub-byte types are packed when the file is written.

    Args:
        q: Numbers that ``dtype`` holds exactly, one per element.
        dtype: An integer type, 4- and 2-bit ones included, or an 8-bit float.
    """
    return ir.Tensor(q.astype(dtype.numpy(), copy=False), dtype=dtype)

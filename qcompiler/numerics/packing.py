"""Pack low-bit integers into the layouts that runtimes read.

``com.microsoft:MatMulNBits`` reads a weight ``[K, N]`` as unsigned blocks along K, low bits first
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits);
ONNX stores 4-bit tensors two to a byte, and ``onnx_ir`` does that packing when it writes the file.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.numerics.affine import IntArray
from qcompiler.numerics.qtensor import QTensor

__all__ = [
    "NBitsBlob",
    "integer_tensor",
    "pack_bits",
    "pack_matmul_nbits",
    "unpack_bits",
    "unpack_matmul_nbits",
]

Bytes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class NBitsBlob:
    """The constants of one ``MatMulNBits`` node.

    Attributes:
        data: uint8 ``[N, G, block_size * bits / 8]``, G being ``ceil(K / block_size)``.
        scale: float32 ``[N, G]``.
        zero_point: uint8 ``[N, ceil(G * bits / 8)]``, or None for the default ``2^(bits-1)``.
        bits: 2, 4 or 8.
        block_size: Elements along K that share a scale.
        shape: ``(K, N)`` of the weight.
    """

    data: Bytes
    scale: npt.NDArray[np.float32]
    zero_point: Bytes | None
    bits: int
    block_size: int
    shape: tuple[int, int]


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


def pack_matmul_nbits(weight: QTensor) -> NBitsBlob:
    """Lay out a block-quantized weight ``[K, N]`` (blocks along axis 0) for ``MatMulNBits``.

    Signed integers are shifted by ``2^(bits-1)``. A ragged last block is filled up with the
    default zero point, which the kernel multiplies by zeros.
    """
    spec = weight.spec
    if weight.q.ndim != 2 or spec.group_size is None or (spec.axis or 0) % 2 != 0:
        raise ValueError(f"MatMulNBits wants [K, N] in blocks along K, not {spec} {weight.q.shape}")
    k, n = weight.q.shape
    bits, block_size = spec.bits or spec.dtype.bitwidth, spec.group_size
    groups, middle = -(-k // block_size), 2 ** (bits - 1)
    shift = middle if spec.is_signed else 0
    padded = np.full((n, groups * block_size), middle, np.uint8)
    padded[:, :k] = weight.q.T if shift == 0 else weight.q.T + np.int16(shift)
    scale = np.ascontiguousarray(np.broadcast_to(weight.scale, (groups, n)).T)
    zero_point = None
    if weight.zero_point is not None or shift == 0:
        zero = np.int32(0) if weight.zero_point is None else weight.zero_point
        zeros = np.broadcast_to(zero + shift, (groups, n)).T
        if (zeros != middle).any():
            zero_point = pack_bits(zeros.astype(np.uint8), bits)
    data = pack_bits(padded.reshape(n, groups, block_size), bits)
    return NBitsBlob(data, scale, zero_point, bits, block_size, (k, n))


def unpack_matmul_nbits(blob: NBitsBlob) -> npt.NDArray[np.float32]:
    """The float32 weight ``[K, N]`` that ``MatMulNBits`` multiplies by."""
    k, n = blob.shape
    groups = blob.data.shape[1]
    q = unpack_bits(blob.data, blob.bits, blob.block_size).astype(np.float32)
    zero: Any = np.float32(2 ** (blob.bits - 1))
    if blob.zero_point is not None:
        zero = unpack_bits(blob.zero_point, blob.bits, groups).astype(np.float32)[:, :, None]
    floats = ((q - zero) * blob.scale[:, :, None]).reshape(n, -1)[:, :k]
    return np.ascontiguousarray(floats.T, dtype=np.float32)


def integer_tensor(
    q: npt.NDArray[Any], dtype: ir.DataType, name: str | None = None
) -> ir.Tensor[Any]:
    """``q`` as an ir tensor of ``dtype``; sub-byte types are packed when the file is written.

    Args:
        q: Numbers that ``dtype`` holds exactly, one per element.
        dtype: An integer type, 4- and 2-bit ones included, or an 8-bit float.
        name: Name of the tensor.
    """
    return ir.Tensor(q.astype(dtype.numpy(), copy=False), dtype=dtype, name=name)

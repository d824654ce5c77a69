"""Weights of few bits rounded to int8 with one scale per column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.packing import unpack_bits

__all__ = ["byte_columns", "column_steps", "dequantized", "row_shares"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_TINY = np.float32(1e-30)  # of a column of zeros


def column_steps(scale: Floats, zero_point: Bytes | None, bits: int) -> Floats:
    """A 127th of the largest number that the codes of each column can say.

    Args:
        scale: ``[N, blocks]``.
        zero_point: ``[N, ceil(blocks * bits / 8)]``, packed; None is the middle code everywhere.
        bits: 2, 4 or 8.

    Returns:
        ``[N]`` float32.
    """
    zeros = _zeros(zero_point, bits, scale.shape)
    reach = np.maximum(zeros, (1 << bits) - 1 - zeros) * np.abs(scale)
    return np.maximum(reach.max(axis=1) / np.float32(127), _TINY)  # type: ignore[no-any-return]


def row_shares(factors: Floats, size: int) -> tuple[Floats, Floats]:
    """Factors of rows as the largest of each block, and each row's share of its block's.

    Args:
        factors: ``[K]``, > 0.
        size: Rows of a block; the last one may have fewer.

    Returns:
        ``[blocks]`` and ``[K]``.
    """
    largest = np.maximum.reduceat(factors, np.arange(0, len(factors), size))
    return largest, factors / np.repeat(largest, size)[: len(factors)]


def dequantized(data: Bytes, scale: Floats, zero_point: Bytes | None, bits: int) -> Floats:
    """The numbers of a weight of ``MatMulNBits``, ``[N, blocks * block_size]``; see below."""
    codes = unpack_bits(data, bits, data.shape[2] * 8 // bits).astype(np.float32)
    codes -= _zeros(zero_point, bits, scale.shape)[..., None]
    codes *= scale[..., None]
    return codes.reshape(len(codes), -1)


def byte_columns(
    data: Bytes,
    scale: Floats,
    zero_point: Bytes | None,
    bits: int,
    k: int,
    shares: Floats | None = None,
) -> npt.NDArray[np.int8]:
    """A weight of ``MatMulNBits`` in :func:`column_steps`.

    Args:
        data: ``[N, blocks, block_size * bits / 8]``, packed.
        scale: As in :func:`column_steps`.
        zero_point: As in :func:`column_steps`.
        bits: 2, 4 or 8.
        k: Rows of the weight; the last block may go beyond.
        shares: ``[K]`` at most 1, rows are multiplied by them; None leaves them.

    Returns:
        int8 ``[K, N]``.
    """
    ratio = scale / column_steps(scale, zero_point, bits)[:, None]
    numbers = dequantized(data, ratio, zero_point, bits)[:, :k]
    if shares is not None:
        numbers *= shares
    return np.ascontiguousarray(np.rint(numbers).astype(np.int8).T)


def _zeros(zero_point: Bytes | None, bits: int, shape: tuple[int, ...]) -> Floats:
    if zero_point is None:
        return np.full(shape, 1 << (bits - 1), np.float32)
    return unpack_bits(zero_point, bits, shape[1]).astype(np.float32)

"""How ``com.microsoft:MatMulNBits`` stores a weight ``[K, N]``, and how it gets there from a file.

The kernel reads unsigned integers of 2, 4 or 8 bits in blocks of 16 to 256 along K, low bits first
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
Other formats that are integers at heart are filed in as few bits as they have and unpacked when
the model is loaded: 3 bits into 4, for instance, as a plane of 2 and a plane of 1. A plane of
``p`` bits packs what ``container / p`` consecutive bytes of the container hold of it into one byte.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.codebooks import CODEBOOKS
from qcompiler.numerics.packing import pack_bits
from qcompiler.schemes import Granularity, QSpec

__all__ = [
    "NBitsLayout",
    "container_table",
    "join_planes",
    "kernel_data",
    "kernel_scale",
    "kernel_zero_point",
    "nbits_layout",
    "plane_mask",
    "planes_of",
    "split_planes",
    "stored_bytes",
]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_CONTAINER = {1: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
# the largest block with a fast kernel: 2-bit blocks of 256 run at a sixteenth of float's speed
# (onnxruntime 1.31.1, x86 with AVX-512)
_LARGEST_BLOCK = {2: 128, 4: 256, 8: 256}
_COLUMN_BLOCK = 128  # of weights with one scale per column


@dataclasses.dataclass(frozen=True, slots=True)
class NBitsLayout:
    """Where the codes of a spec go.

    Attributes:
        bits: Of the container: 2, 4 or 8.
        planes: Bits of the planes that the file holds, lowest first; ``(bits,)`` is the container
            itself.
        block_size: Elements along K that share a scale in the kernel.
        blocks_per_scale: Blocks to which one scale of the file belongs; 0 is the whole column.
        zero: Zero point of all blocks where the spec is symmetric.
    """

    bits: int
    planes: tuple[int, ...]
    block_size: int
    blocks_per_scale: int
    zero: int

    @property
    def is_native(self) -> bool:
        """Whether the kernel reads the file's codes as they are."""
        return self.planes == (self.bits,)

    def blocks(self, k: int) -> int:
        """Blocks of a column of ``k`` elements."""
        return -(-k // self.block_size)


def nbits_layout(spec: QSpec, k: int = 0) -> NBitsLayout | str:
    """The kernel's form of a weight spec, or why there is none: what was found and is wanted.

    Args:
        spec: How the weight is rounded.
        k: In-features. A column of one scale is cut into blocks that fit, so that little is filled
            up; 0 where the blocks do not matter.
    """
    if spec.codebook not in ("", "fp4", "b1"):
        return f"{spec.codebook} is no multiple of integers"
    if spec.float_zero and spec.scales is not None:
        return "float zero points with quantized scales"
    if spec.is_float8 or spec.width > 8:
        return f"{spec.word}, wanted integers of 1 to 8 bits"
    bits = 8 if spec.codebook == "fp4" else _CONTAINER[spec.width]
    planes = planes_of(spec.width) if spec.width != bits else (bits,)
    zero = {"fp4": 128, "b1": 2}.get(spec.codebook, 1 << (spec.width - 1))
    if spec.granularity is Granularity.CHANNEL:
        block = min(max(k & -k, 32), _COLUMN_BLOCK)
        return NBitsLayout(bits, planes, block, 0, zero)
    size = spec.group_size
    if size is None:
        return "one scale per weight, wanted groups or one per column"
    block = min(size & -size, _LARGEST_BLOCK[bits])
    if block < 16:
        return f"group size {size}, wanted a multiple of 16"
    return NBitsLayout(bits, planes, block, size // block, zero)


def planes_of(width: int) -> tuple[int, ...]:
    """Powers of two that sum up to ``width``, largest first."""
    return tuple(bit for bit in (8, 4, 2, 1) if width & bit)


def container_table(spec: QSpec) -> Bytes | None:
    """What each code becomes in the container; None where it stays the number it is."""
    if spec.codebook == "fp4":
        return (CODEBOOKS["fp4"] * 2 + 128).astype(np.uint8)  # halves: the scale is halved, too
    if spec.codebook == "b1":
        return np.asarray([1, 3], np.uint8)
    return None


def split_planes(container: Bytes, bits: int, planes: tuple[int, ...]) -> list[Bytes]:
    """The planes of container bytes ``[..., n]``: of ``p`` bits ``[..., n * p / bits]``."""
    found, offset = [], 0
    for plane in planes:
        count = bits // plane
        low = (container >> np.uint8(offset)) & _mask(bits, plane)
        parts = low.reshape(*low.shape[:-1], -1, count)
        packed = parts[..., 0].copy()
        for index in range(1, count):
            packed |= parts[..., index] << np.uint8(plane * index)
        found.append(packed)
        offset += plane
    return found


def join_planes(planes: list[Bytes], bits: int, widths: tuple[int, ...]) -> Bytes:
    """The container bytes that :func:`split_planes` took apart."""
    whole: Bytes | None = None
    offset = 0
    for packed, plane in zip(planes, widths, strict=True):
        shifts = (np.arange(bits // plane) * plane).astype(np.uint8)
        low = ((packed[..., None] >> shifts) & _mask(bits, plane)) << np.uint8(offset)
        flat = low.reshape(*packed.shape[:-1], -1)
        whole = flat if whole is None else whole | flat
        offset += plane
    assert whole is not None, "a code has at least one bit"
    return whole


def plane_mask(bits: int, plane: int) -> int:
    """The lowest ``plane`` bits of every element of a byte of ``bits``-bit elements."""
    return sum(((1 << plane) - 1) << start for start in range(0, 8, bits))


def _mask(bits: int, plane: int) -> np.uint8:
    return np.uint8(plane_mask(bits, plane))


def kernel_data(q: npt.NDArray[np.integer], spec: QSpec, layout: NBitsLayout) -> Bytes:
    """Codes ``[K, N]`` as container bytes ``[N, blocks, block_size * bits / 8]``.

    Signed integers are shifted by half of their range. A ragged last block is filled up with the
    zero point; the kernel multiplies it by zeros. Codes of a codebook stay codes where the file
    holds them in planes of fewer bits (:func:`container_table` is applied when it is loaded).
    """
    k, n = q.shape
    blocks = layout.blocks(k)
    shift = 1 << (spec.width - 1) if spec.is_signed else 0
    fill = 0 if spec.codebook else layout.zero
    padded = np.full((n, blocks * layout.block_size), fill, np.uint8)
    padded[:, :k] = q.T if shift == 0 else q.T + np.int16(shift)
    return pack_bits(padded.reshape(n, blocks, layout.block_size), layout.bits)


def kernel_scale(scale: Floats, spec: QSpec) -> Floats:
    """Scales ``[groups, N]`` as the file holds them: ``[N, groups]``."""
    factor = np.float32(0.5 if spec.codebook == "fp4" else 1.0)
    rows = scale.reshape(-1, scale.shape[-1]).T
    return np.ascontiguousarray(rows * factor if factor != 1 else rows)


def kernel_zero_point(
    zero_point: npt.NDArray[np.integer], k: int, spec: QSpec, layout: NBitsLayout
) -> Bytes:
    """Zero points ``[groups, N]`` as packed bytes ``[N, ceil(blocks * bits / 8)]``."""
    shift = 1 << (spec.width - 1) if spec.is_signed else 0
    rows = (zero_point + shift).reshape(-1, zero_point.shape[-1]).T.astype(np.uint8)
    return pack_bits(_by_block(rows, k, layout), layout.bits)


def _by_block(rows: npt.NDArray[np.generic], k: int, layout: NBitsLayout) -> npt.NDArray[Any]:
    """``[N, groups]`` repeated to ``[N, blocks]``."""
    count = layout.blocks_per_scale or layout.blocks(k)
    return np.repeat(rows, count, axis=1)[:, : layout.blocks(k)]


def stored_bytes(spec: QSpec, shape: tuple[int, int]) -> int:
    """Bytes that a weight of ``shape`` takes in a file: codes, scales and zero points."""
    k, n = shape
    groups = 1 if spec.group_size is None else -(-k // spec.group_size)
    padded = k if spec.group_size is None else groups * spec.group_size
    scales = groups * n * 4
    if spec.scales is not None:
        size = spec.scales.group_size or groups * n
        scales = groups * n + math.ceil(groups * n / size) * 5
    zeros = 0 if spec.symmetric else math.ceil(groups * n * spec.width / 8)
    if spec.float_zero:
        zeros = groups * n * 4
    return padded * n * spec.width // 8 + scales + zeros

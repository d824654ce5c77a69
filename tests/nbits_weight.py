"""What ``com.microsoft:MatMulNBits`` multiplies by, computed from its three constants."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.nbits import NBitsLayout, container_table, nbits_layout
from qcompiler.numerics.packing import unpack_bits
from qcompiler.schemes import QSpec


def unpack_nbits(
    data: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float32],
    zero_point: npt.NDArray[np.uint8] | None,
    spec: QSpec,
    k: int,
) -> npt.NDArray[np.float32]:
    """The float32 weight ``[K, N]`` that the kernel multiplies by, from the three constants."""
    layout = nbits_layout(spec, k)
    assert isinstance(layout, NBitsLayout)
    n, blocks = data.shape[0], data.shape[1]
    codes = unpack_bits(data, layout.bits, layout.block_size)
    table = container_table(spec)
    q = (codes if table is None else table[codes]).astype(np.float32)
    zero = np.full((n, blocks), layout.zero, np.float32)
    if zero_point is not None:
        zero = unpack_bits(zero_point, layout.bits, blocks).astype(np.float32)
    each = layout.blocks_per_scale or blocks
    steps = np.repeat(scale, each, axis=1)[:, :blocks].astype(np.float32)
    floats = ((q - zero[:, :, None]) * steps[:, :, None]).reshape(n, -1)[:, :k]
    return np.ascontiguousarray(floats.T, dtype=np.float32)

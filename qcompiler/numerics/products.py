"""Small matrix products on one thread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["small_product"]

Floats = npt.NDArray[np.float32]

_UNTHREADED = 1 << 18  # multiply-adds; from here on OpenBLAS 0.3 hands parts to other threads
_DEPTH = 128  # summed at once: slices of two rows, which deep products would need, are slow


def small_product(left: Floats, right: Floats) -> Floats:
    """``left @ right`` in pieces that a BLAS keeps on this thread.

    For many small products: on a busy machine waiting for a thread that is not running costs ten
    times the arithmetic.
    """
    depth, width = right.shape
    size = max(1, _UNTHREADED // max(1, min(_DEPTH, depth) * width))
    full = len(left) // size * size
    stacked = left[:full].reshape(full // size, size, depth)
    product = np.zeros((len(left), width), np.result_type(left, right))
    slices = product[:full].reshape(full // size, size, width)
    for start in range(0, depth, _DEPTH):
        part = slice(start, start + _DEPTH)
        slices += stacked[..., part] @ right[part]
        product[full:] += left[full:, part] @ right[part]
    return product

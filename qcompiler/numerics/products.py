"""Small matrix products on one thread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["small_product"]

Floats = npt.NDArray[np.float32]

_UNTHREADED = 1 << 18  # multiply-adds; from here on OpenBLAS 0.3 hands parts to other threads


def small_product(left: Floats, right: Floats) -> Floats:
    """``left @ right`` in slices of rows that a BLAS keeps on this thread.

    For many small products: on a busy machine waiting for a thread that is not running costs ten
    times the arithmetic.
    """
    size = max(1, _UNTHREADED // max(1, right.size))
    full = len(left) // size * size
    stacked = left[:full].reshape(full // size, size, left.shape[1]) @ right
    return np.concatenate((stacked.reshape(full, right.shape[1]), left[full:] @ right))

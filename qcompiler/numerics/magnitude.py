"""Keep squares and products of float32 within its range."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["unit_of"]

_ORDINARY = 40  # squares of sums of numbers up to 2**40 are far from the limits of float32


def unit_of(x: npt.NDArray[np.float32]) -> np.float32:
    """A power of two near the largest magnitude of finite ``x``; 1 where that is ordinary.

    Divided by it, elements can be squared and summed in float32. The division is exact, save for
    elements that are 38 orders of magnitude below the largest.
    """
    largest = max(abs(float(x.min(initial=0.0))), abs(float(x.max(initial=0.0))))
    exponent = math.frexp(largest)[1]
    if largest == 0.0 or abs(exponent) <= _ORDINARY:
        return np.float32(1.0)
    return np.float32(2.0 ** max(-126, min(exponent, 126)))

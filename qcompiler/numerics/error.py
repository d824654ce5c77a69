"""How far two arrays are apart.

Sums run in float64: float32 loses digits over millions of terms.
"""

from __future__ import annotations

import math

import numpy as np

from qcompiler.numerics.affine import Array

__all__ = ["cosine", "max_abs", "mse", "sqnr_db"]


def mse(reference: Array, other: Array) -> float:
    """Mean squared difference; 0 for empty arrays."""
    difference = _flat(reference) - _flat(other)
    return float(difference @ difference) / difference.size if difference.size else 0.0


def sqnr_db(reference: Array, other: Array) -> float:
    """Signal to quantization noise, ``10 log10(sum r^2 / sum (r - o)^2)``, in dB.

    Infinite for equal arrays; minus infinite for a reference of zeros that is missed.
    """
    signal = _flat(reference)
    noise = signal - _flat(other)
    noise_power, signal_power = float(noise @ noise), float(signal @ signal)
    if noise_power == 0.0:
        return math.inf
    return 10.0 * math.log10(signal_power / noise_power) if signal_power else -math.inf


def cosine(reference: Array, other: Array) -> float:
    """Cosine of the angle between the arrays as vectors; 1 for two zero vectors, 0 for one."""
    a, b = _flat(reference), _flat(other)
    norm_a, norm_b = math.sqrt(float(a @ a)), math.sqrt(float(b @ b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 1.0 if norm_a == norm_b else 0.0
    return float((a / norm_a) @ (b / norm_b))


def max_abs(reference: Array, other: Array) -> float:
    """Largest absolute difference; 0 for empty arrays."""
    difference = np.abs(_flat(reference) - _flat(other))
    return float(difference.max()) if difference.size else 0.0


def _flat(x: Array) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(x, np.float64).reshape(-1)

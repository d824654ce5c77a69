"""Scales under which 4-bit weights become 8-bit floats without error (W4A8).

Hardware that multiplies E4M3 numbers can take weights that are filed in 4 bits, if what they stand
for *is* E4M3: nothing is then rounded on the way. E4M3 has four significant bits, as many as the
largest difference of two 4-bit integers, so a product with a power of two is such a number within
the type's range, subnormal numbers included: ``(q - z) 2^e`` with ``e`` from -9 to 4. Every scale
of a column is therefore one factor, which the product is multiplied with afterwards, times a power
of two. (The idea of GPTQ that knows of 8-bit floats is that of DPQ and of Intel Neural Compressor's
``fp8_aware``, which round ``(q - z) s`` to E4M3 instead of restricting ``s``.)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.rtn import round_with_scale
from qcompiler.numerics.qtensor import QTensor, expand_groups
from qcompiler.schemes import QSpec

__all__ = ["OCTAVES", "ColumnFactors", "takes_fp8_scales"]

Floats = npt.NDArray[np.float32]

OCTAVES = 13  # from the smallest exponent of a column to the largest


def takes_fp8_scales(spec: QSpec) -> bool:
    """Whether the spec is one of integers of at most 4 bits whose scales are floats."""
    numbers = not (spec.codebook or spec.is_float8 or spec.float_zero)
    return numbers and spec.width <= 4 and spec.axis is not None and spec.scales is None


@dataclasses.dataclass(frozen=True)
class ColumnFactors:
    """What the scales of each column may be.

    Attributes:
        factor: Positive, ``[1, N]``.
        largest: Largest exponent of the power of two behind it, ``[1, N]``.
    """

    factor: Floats
    largest: npt.NDArray[np.float64]

    @classmethod
    def of(cls, found: QTensor) -> ColumnFactors:
        """The factors nearest to the scales ``[groups, N]`` of a rounded matrix.

        Exponents want to be whole: the mean of their fractions on the circle, groups weighted by
        the square of their scale. One octave of room is left for groups that grow later.
        """
        size = np.abs(found.scale.astype(np.float64))
        turns = 2j * np.pi * np.log2(np.where(size > 0, size, 1.0))
        mean = (np.square(size) * np.exp(turns)).sum(axis=0, keepdims=True)
        factor = np.exp2(np.angle(mean) / (2 * np.pi)).astype(np.float32)
        most = np.log2(np.maximum(size.max(axis=0, keepdims=True), 1e-30) / factor)
        return cls(factor, np.rint(most) + 1)

    def snap(self, rows: Floats, found: QTensor) -> QTensor:
        """The rows rounded under allowed scales: of the two nearest, the one with less error.

        Args:
            rows: ``[K, N]``.
            found: The same under free scales.
        """
        size = np.abs(found.scale.astype(np.float64))
        exponent = np.floor(np.log2(np.where(size > 0, size, 1.0) / self.factor))
        tried = []
        for step in (0, 1):
            power = np.clip(exponent + step, self.largest - OCTAVES, self.largest)
            scale = np.copysign(self.factor * np.exp2(power), found.scale).astype(np.float32)
            tensor = round_with_scale(rows, scale, _zero_point(found, scale), found.spec)
            error = np.square(rows - tensor.dequantize())
            tried.append((tensor, _group_sums(error, found.spec)))
        (low, low_error), (high, high_error) = tried
        take = high_error < low_error
        zero = None
        if low.zero_point is not None and high.zero_point is not None:
            zero = np.where(take, high.zero_point, low.zero_point)
        scale = np.where(take, high.scale, low.scale)
        q = np.where(expand_groups(take, rows.shape, found.spec), high.q, low.q)
        return dataclasses.replace(found, q=q, scale=scale, zero_point=zero)


def _zero_point(found: QTensor, scale: Floats) -> npt.NDArray[np.int32]:
    """The zero points with which the range under another scale has the same middle."""
    spec = found.spec
    if spec.symmetric or found.zero_point is None:
        return np.full(scale.shape, spec.middle, np.int32)
    middle = (spec.qmin + spec.qmax) / 2
    zero = np.rint(middle - (middle - found.zero_point) * (found.scale / scale))
    return np.clip(zero, spec.qmin, spec.qmax).astype(np.int32)


def _group_sums(error: Floats, spec: QSpec) -> Floats:
    """Sums over the rows of each group, ``[groups, N]``."""
    starts = np.arange(0, len(error), spec.group_size or max(1, len(error)))
    sums: Floats = np.add.reduceat(error, starts, axis=0)
    return sums

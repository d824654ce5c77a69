"""Algorithms that round a weight from nothing but the weight: RTN, k-quant, HQQ.

All give integer zero points: kernels of few bits take float ones at a sixteenth of the speed
(onnxruntime 1.31.1).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.group_search import GroupSearch, search_groups
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec

__all__ = ["HqqOptions", "RtnOptions", "hqq", "k_quant", "rtn"]

Weight = npt.NDArray[np.floating]

_CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_FEW_BITS = 4  # from 5 bits on nothing is won by clipping


@dataclasses.dataclass(frozen=True, slots=True)
class RtnOptions:
    """How to round to nearest.

    Attributes:
        search: Search clipped ranges, of 4 bits and fewer.
        full_range: Let symmetric groups use their lowest number, with a negative scale where the
            largest element is positive.
        norm: Exponent of the error that the search minimises; 2.4 is a custom of GPTQ's search.
    """

    search: bool = True
    full_range: bool = True
    norm: float = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class HqqOptions:
    """How to minimise the error over scales and zero points.

    Attributes:
        norm: Exponent of the error; below 2 a few large errors matter less. None is 1 with float
            zero points and 2 with integer ones.
        magnitude: Exponent with which an element's size weighs its error; 0 weighs all alike.
        refits: Rounds of rounding and solving, for each scale that is tried.
    """

    norm: float | None = None
    magnitude: float = 0.0
    refits: int = 3


def rtn(
    weight: Weight, spec: QSpec, options: RtnOptions = RtnOptions(), *, where: str = ""
) -> QTensor:
    """Round to nearest. See :func:`~qcompiler.algorithms.group_search.search_groups`."""
    few = spec.width <= _FEW_BITS
    search = GroupSearch(
        ratios=_CLIPPED if options.search and few else (1.0,),
        refits=1 if spec.codebook == "b1" else 0,
        norm=options.norm,
        full_range=options.full_range and options.search,
    )
    return search_groups(weight, spec, search, where=where)


def k_quant(weight: Weight, spec: QSpec, *, full_range: bool = True, where: str = "") -> QTensor:
    """Weighted least squares for scale and zero point, after the k-quants of llama.cpp.

    An element's squared error weighs as much as its size, ``sqrt(x^2 + mean x^2)`` (ggml-quants.c,
    ``make_qkx2_quants``).

    Args:
        weight: ``[K, N]``, or a table ``[V, D]``.
        spec: BLOCK or CHANNEL.
        full_range: As in :class:`RtnOptions`.
        where: The user's name for the constant, for errors.
    """
    ratios = (0.91, 0.94, 0.97, 1.0, 1.03)
    search = GroupSearch(ratios, (-1, 0, 1), refits=1, full_range=full_range, magnitude=1.0)
    return search_groups(weight, spec, search, where=where)


def hqq(
    weight: Weight,
    spec: QSpec,
    options: HqqOptions = HqqOptions(),
    *,
    full_range: bool = True,
    where: str = "",
) -> QTensor:
    """Minimise a norm of the error by rounding and solving in turns, from several scales.

    The objective is that of half-quadratic quantization (Badri and Shaji 2023,
    https://mobiusml.github.io/hqq_blog), ``sum |x - s (q - z)|^p``, which keeps the scale of the
    range and solves for a float zero point. This one tries scales around it as well. With integer
    zero points it goes through those around the nearest, from several scales, and solves for the
    scale.

    Args:
        weight: ``[K, N]``, or a table ``[V, D]``.
        spec: BLOCK or CHANNEL.
        options: See :class:`HqqOptions`.
        full_range: As in :class:`RtnOptions`.
        where: The user's name for the weight, for errors.
    """
    if spec.float_zero:
        around = GroupSearch(
            ratios=(0.96, 1.0, 1.04),
            refits=options.refits,
            norm=1.0 if options.norm is None else options.norm,
            magnitude=options.magnitude,
        )
        return search_groups(weight, spec, around, where=where)
    search = GroupSearch(
        ratios=(0.92, 0.96, 1.0, 1.04),
        shifts=(-1, 0, 1),
        refits=options.refits,
        norm=2.0 if options.norm is None else options.norm,
        full_range=full_range,
        magnitude=options.magnitude,
    )
    return search_groups(weight, spec, search, where=where)

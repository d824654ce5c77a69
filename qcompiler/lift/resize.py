"""Resize: one axis at a time, as a weighted sum of picked slices.

Every mode of ONNX Resize is separable, and along one axis each output is a sum of at most four
inputs. Written so, all coordinate rules work with all modes, and gradients come for free.
Formulas: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from qcompiler.lift.operands import Ints, Table, ints

__all__ = ["OPERATORS"]

Coordinates = Literal[
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"
]
Nearest = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Ints = None,
    *,
    antialias: Literal[0] = 0,
    axes: Ints = None,
    coordinate_transformation_mode: Coordinates = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: Literal["stretch"] = "stretch",
    mode: Literal["nearest", "linear", "cubic"] = "nearest",
    nearest_mode: Nearest = "round_prefer_floor",
) -> Tensor:
    """Resample along axes, by ``scales`` or to ``sizes``."""
    along = [axis % x.ndim for axis in ints(axes)] or list(range(x.ndim))
    if sizes is not None:
        wanted = ints(sizes)
        factors = [size / x.shape[axis] for size, axis in zip(wanted, along, strict=True)]
    else:
        assert scales is not None, "Resize has neither scales nor sizes"
        factors = [float(factor) for factor in scales.tolist()]
        wanted = [math.floor(x.shape[axis] * f) for axis, f in zip(along, factors, strict=True)]
    for axis, factor, size in zip(along, factors, wanted, strict=True):
        if factor == 1.0 and size == x.shape[axis]:
            continue
        at = _COORDINATES[coordinate_transformation_mode](size, factor, x.shape[axis])
        if mode == "nearest":
            index = _NEAREST[nearest_mode](at).clamp(0, x.shape[axis] - 1)
            x = x.index_select(axis, index.to(torch.int64).to(x.device))
        else:
            x = _weighted(x, axis, at, mode == "cubic", cubic_coeff_a, bool(exclude_outside))
    return x


def resize_10(
    x: Tensor, scales: Tensor, *, mode: Literal["nearest", "linear"] = "nearest"
) -> Tensor:
    """The form of opset 10, and Upsample: asymmetric coordinates, nearest by floor."""
    return resize(
        x,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _steps(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64)


def _half_pixel_symmetric(size: int, factor: float, length: int) -> Tensor:
    offset = length / 2 * (1 - size / (factor * length))
    return offset + (_steps(size) + 0.5) / factor - 0.5


_COORDINATES: dict[str, Callable[[int, float, int], Tensor]] = {
    "half_pixel": lambda size, factor, length: (_steps(size) + 0.5) / factor - 0.5,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda size, factor, length: (
        (_steps(size) + 0.5) / factor - 0.5 if size > 1 else torch.zeros(1, dtype=torch.float64)
    ),
    "align_corners": lambda size, factor, length: (
        _steps(size) * ((length - 1) / (size - 1)) if size > 1 else _steps(size)
    ),
    "asymmetric": lambda size, factor, length: _steps(size) / factor,
}
_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _weighted(
    x: Tensor, axis: int, at: Tensor, cubic: bool, a: float, exclude_outside: bool
) -> Tensor:
    length, first = x.shape[axis], torch.floor(at)
    taps = range(-1, 3) if cubic else range(2)
    weights, places = [], []
    for tap in taps:
        distance = (at - first - tap).abs()
        weight = _cubic(distance, a) if cubic else 1 - distance
        place = first + tap
        if exclude_outside:
            weight = torch.where((place < 0) | (place > length - 1), 0.0, weight)
        weights.append(weight)
        places.append(place.clamp(0, length - 1).to(torch.int64))
    whole = sum(weights) if exclude_outside else None
    shape = [-1 if item == axis else 1 for item in range(x.ndim)]
    y: Tensor | None = None
    for weight, place in zip(weights, places, strict=True):
        share = (weight if whole is None else weight / whole).to(x).reshape(shape)
        part = x.index_select(axis, place.to(x.device)) * share
        y = part if y is None else y + part
    return y


def _cubic(d: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel at distance ``d`` (Keys 1981)."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


OPERATORS: Table = {
    ("", "Upsample", 9): resize_10,
    ("", "Resize", 10): resize_10,
    ("", "Resize", 11): resize,
}

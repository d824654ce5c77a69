"""A quantized tensor: what rounding algorithms return and what ``apply/`` and ``lower/`` take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.affine import Array, dequantize
from qcompiler.schemes import QSpec

__all__ = ["QTensor", "expand_groups"]


@dataclasses.dataclass(frozen=True, slots=True)
class QTensor:
    """Stored elements with their scales.

    Laws, checked when it is made:

    - ``q`` has the original's shape and holds one unpacked element each: an integer, or an 8-bit
      float (``spec.dtype.numpy()``, a byte that numpy knows as a number);
    - ``scale.ndim == q.ndim`` and ``scale.shape[i]`` is ``1``, ``q.shape[i]`` or the number of
      groups, ``ceil(q.shape[i] / group_size)`` (the last group may be ragged);
    - ``zero_point`` has the shape of ``scale``, or is None when it is 0 everywhere;
    - ``original ~= (q - zero_point) * scale``, each scale repeated over its tile.

    Attributes:
        q: ``[...]``, integers in any integer type that holds them, or 8-bit floats.
        scale: float32.
        zero_point: int32 or None.
        spec: How it was quantized.
    """

    q: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int32] | None
    spec: QSpec

    def __post_init__(self) -> None:
        if self.scale.ndim != self.q.ndim:
            raise ValueError(f"scale has rank {self.scale.ndim}, the tensor {self.q.ndim}")
        for axis, (have, size) in enumerate(zip(self.scale.shape, self.q.shape, strict=True)):
            grouped = axis == self._group_axis and self.spec.group_size is not None
            groups = -(-size // self.spec.group_size) if grouped and self.spec.group_size else size
            if have not in (1, groups):
                raise ValueError(f"scale has {have} entries on axis {axis}, wanted 1 or {groups}")
        if self.zero_point is not None and self.zero_point.shape != self.scale.shape:
            raise ValueError("zero_point and scale differ in shape")

    @property
    def _group_axis(self) -> int | None:
        return None if self.spec.axis is None else self.spec.axis % self.q.ndim

    def dequantize(self) -> Array:
        """The float32 tensor it stands for, shape of ``q``."""
        scale = expand_groups(self.scale, self.q.shape, self.spec)
        if self.zero_point is None:
            return dequantize(self.q, scale, np.zeros((), np.int32))
        return dequantize(self.q, scale, expand_groups(self.zero_point, self.q.shape, self.spec))


def expand_groups(
    params: npt.NDArray[Any], shape: tuple[int, ...], spec: QSpec
) -> npt.NDArray[Any]:
    """Repeat block parameters over their groups so that they broadcast against ``shape``."""
    if spec.group_size is None or spec.axis is None:
        return params
    axis = spec.axis % len(shape)
    repeated = np.repeat(params, spec.group_size, axis=axis)
    return np.take(repeated, np.arange(shape[axis]), axis=axis)

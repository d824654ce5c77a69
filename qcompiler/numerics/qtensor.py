"""A quantized tensor: what rounding algorithms return and what ``apply/`` and ``lower/`` take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.affine import Array, dequantize
from qcompiler.numerics.codebooks import CODEBOOKS
from qcompiler.schemes import Granularity, QSpec

__all__ = ["QTensor", "expand_groups", "scale_from_vector", "scale_vector"]


@dataclasses.dataclass(frozen=True, slots=True)
class QTensor:
    """Stored elements with their scales.

    Laws, checked when it is made:

    - ``q`` has the original's shape and holds one unpacked element each: an integer, or an 8-bit
      float (``spec.dtype.numpy()``, a byte that numpy knows as a number);
    - ``scale.ndim == q.ndim`` and ``scale.shape[i]`` is ``1``, ``q.shape[i]`` or the number of
      groups, ``ceil(q.shape[i] / group_size)`` (the last group may be ragged);
    - ``zero_point`` has the shape of ``scale``, or is None when it is 0 everywhere;
    - ``original ~= (q - zero_point) * scale``, each scale repeated over its tile; for a codebook
      ``entry[q] * scale``;
    - ``stored_scale``, where there is one, dequantizes to ``scale`` in the order of
      :func:`scale_vector`.

    Attributes:
        q: ``[...]``, integers in any integer type that holds them, codes, or 8-bit floats.
        scale: float32.
        zero_point: int32 or None; float32 where the spec says so.
        spec: How it was quantized.
        stored_scale: The scales as one vector, quantized under ``spec.scales``.
    """

    q: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any] | None
    spec: QSpec
    stored_scale: QTensor | None = None

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
        if (self.spec.scales is None) != (self.stored_scale is None):
            raise ValueError(f"{self.spec} and stored_scale disagree")

    @property
    def _group_axis(self) -> int | None:
        return None if self.spec.axis is None else self.spec.axis % self.q.ndim

    def dequantize(self) -> Array:
        """The float32 tensor it stands for, shape of ``q``."""
        axis, size = self._group_axis, self.spec.group_size
        if axis is None or not size or self.q.shape[axis] % size:
            return self._floats(
                self.q, *(expand_groups(x, self.q.shape, self.spec) for x in self._params)
            )
        # groups on an axis of their own: nothing has to be repeated
        groups = self.q.shape[axis] // size
        split = [*self.q.shape[:axis], groups, size, *self.q.shape[axis + 1 :]]
        parts = (np.expand_dims(x, axis + 1) for x in self._params)
        return self._floats(self.q.reshape(split), *parts).reshape(self.q.shape)

    @property
    def _params(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.scale,) if self.zero_point is None else (self.scale, self.zero_point)

    def _floats(
        self, q: npt.NDArray[Any], scale: Array, zero: npt.NDArray[Any] | None = None
    ) -> Array:
        if self.spec.codebook:
            entries: Array = CODEBOOKS[self.spec.codebook][q]
            floats: Array = entries * scale
            return floats
        if zero is None:
            return dequantize(q, scale, np.zeros((), np.int32))
        if self.spec.float_zero:
            shifted: Array = (q.astype(np.float32) - zero) * scale
            return shifted
        return dequantize(q, scale, zero)


def expand_groups(
    params: npt.NDArray[Any], shape: tuple[int, ...], spec: QSpec
) -> npt.NDArray[Any]:
    """Repeat block parameters over their groups so that they broadcast against ``shape``."""
    if spec.group_size is None or spec.axis is None:
        return params
    axis = spec.axis % len(shape)
    repeated = np.repeat(params, spec.group_size, axis=axis)
    return np.take(repeated, np.arange(shape[axis]), axis=axis)


def scale_vector(scale: npt.NDArray[Any], spec: QSpec) -> npt.NDArray[Any]:
    """The scales as one vector, those along the group axis next to each other."""
    if spec.granularity is Granularity.BLOCK:
        assert spec.axis is not None
        scale = np.moveaxis(scale, spec.axis, -1)
    return np.ascontiguousarray(scale).reshape(-1)


def scale_from_vector(
    vector: npt.NDArray[Any], shape: tuple[int, ...], spec: QSpec
) -> npt.NDArray[Any]:
    """The scales of ``shape`` that :func:`scale_vector` laid out."""
    if spec.granularity is not Granularity.BLOCK:
        return vector.reshape(shape)
    assert spec.axis is not None
    axis = spec.axis % len(shape)
    moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    return np.ascontiguousarray(np.moveaxis(vector.reshape(moved), -1, axis))

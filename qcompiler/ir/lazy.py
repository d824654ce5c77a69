"""Constants that stay in their file until somebody asks, and views of them that cost nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Stored", "View", "lazy_tensor", "multiplied", "tied", "view_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """One array of a checkpoint. Two views of the same object are tied weights.

    Attributes:
        name: What the checkpoint calls it.
        shape: Its shape there.
        read: Gives the array, in the checkpoint's own type. Called at each access and not kept,
            so that a mapped file is unmapped when nobody looks at the array any more.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class View:
    """A stored array as a graph wants it: a part of it, perhaps transposed, shifted and scaled.

    Attributes:
        stored: Where the numbers are.
        span: ``(axis, begin, end)`` of the part that is meant; None is all.
        transposed: Rows and columns swapped.
        offset: Added to every element; norms of Gemma are stored as their difference from one.
        factor: What every element is multiplied by then.
    """

    stored: Stored
    span: tuple[int, int, int] | None = None
    transposed: bool = False
    offset: float = 0.0
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        shape = list(self.stored.shape)
        if self.span is not None:
            axis, begin, end = self.span
            shape[axis] = end - begin
        return tuple(reversed(shape)) if self.transposed else tuple(shape)

    def array(self) -> npt.NDArray[np.float32]:
        """The numbers in float32; not copied where the file holds float32 already."""
        array = self.stored.read()
        if self.span is not None:
            axis, begin, end = self.span
            array = array[(slice(None),) * axis + (slice(begin, end),)]
        array = array.astype(np.float32, copy=False)
        if self.offset:
            array = array + np.float32(self.offset)
        if self.factor != 1.0:
            array = array * np.float32(self.factor)
        return array.T if self.transposed else array

    def __call__(self) -> ir.TensorProtocol:
        """What ``onnx_ir.LazyTensor`` calls."""
        return ir.Tensor(self.array(), dtype=ir.DataType.FLOAT)


def lazy_tensor(view: View, name: str) -> ir.LazyTensor:
    """A float32 tensor that reads its numbers at each access and keeps none."""
    return ir.LazyTensor(view, ir.DataType.FLOAT, ir.Shape(view.shape), name=name)


def multiplied(view: View, factors: npt.NDArray[np.float64], name: str) -> ir.LazyTensor:
    """What a view reads times factors that broadcast against it, computed at each access."""

    def read() -> npt.NDArray[np.float32]:
        return np.asarray(view.array() * factors, np.float32)

    return lazy_tensor(View(Stored(name, view.shape, read)), name)


def view_of(tensor: ir.TensorProtocol | None) -> View | None:
    """The view that a tensor made by :func:`lazy_tensor` reads, else None."""
    raw = tensor.raw if isinstance(tensor, ir.LazyTensor) else None
    return raw if isinstance(raw, View) else None


def tied(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    """Whether two constants are one array of the checkpoint, as it is or transposed."""
    a, b = view_of(one), view_of(other)
    return (
        a is not None
        and b is not None
        and a.stored is b.stored
        and (a.span, a.offset, a.factor) == (b.span, b.offset, b.factor)
        and math.prod(a.shape) > 0
    )

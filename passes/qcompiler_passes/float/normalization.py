"""What the normalization rules share: reductions over the last axis, scales and shifts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.analysis.dims import Dims
from qcompiler.ir.edit import constant
from qcompiler.patterns.match import Match, Operators, Term, Var, maybe, one_of

__all__ = ["inverse_root", "mean_over", "reduced_axes", "row_of", "why_not_last_axis", "width_of"]


def mean_over(op: Operators, x: Term, name: str) -> Term:
    """``ReduceMean(x)``, captured as ``name``; :func:`reduced_axes` are its axes."""
    return op.ReduceMean(x, maybe(Var(f"{name}.axes"))).named(name)


def inverse_root(op: Operators, x: Term, root: Term) -> Term:
    """``x / root``, or ``x`` times the reciprocal of ``root``, however it is written."""
    reciprocal = one_of(op.Reciprocal(root), op.Div(1.0, root), op.Pow(root, -1.0))
    return one_of(op.Div(x, root), op.Mul(x, reciprocal))


def reduced_axes(m: Match, name: str) -> list[int] | None:
    """Axes of the reduction captured as ``name``, as they are written; None: no constant."""
    if f"{name}.axes" not in m:
        return list(m.node(name).attributes.get_ints("axes", []))
    array = m.array(f"{name}.axes")
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


def why_not_last_axis(m: Match, name: str, dims: Dims) -> str | None:
    """Why the reduction captured as ``name`` is not over the last axis alone, keeping it."""
    node, axes = m.node(name), reduced_axes(m, name)
    if axes is None:
        return f"the axes of {node.name} are no constant"
    source = node.inputs[0]
    shape = None if source is None else dims.shape(source)
    rank = None if shape is None else len(shape)
    if axes != [-1] and (rank is None or axes != [rank - 1]):
        return f"{node.name} reduces axes {axes} of rank {rank}, wanted the last one"
    if node.attributes.get_int("keepdims", 1) != 1:
        return f"{node.name} drops the reduced axis"
    return None


def width_of(dims: Dims, x: ir.Value, *rows: ir.Value | None) -> int | None:
    """Size of the last axis of ``x``, from its shape or from a constant [N] applied along it."""
    shape = dims.shape(x)
    if shape and isinstance(shape[-1], int):
        return shape[-1]
    for row in rows:
        if row is not None and row.shape is not None and len(row.shape):
            size = row.shape[-1]
            if isinstance(size, int) and size > 1:
                return size
    return None


def row_of(
    value: ir.Value | None, rank: int, width: int, fill: float, dtype: npt.DTypeLike
) -> ir.Value | npt.NDArray[np.generic] | None:
    """``value`` as a row ``[width]`` that scales or shifts the last axis, or None.

    Args:
        value: A constant that broadcasts to ``[width]``, a computed value of shape ``[width]``, or
            None for a row full of ``fill``.
        rank: Of what is normalized; a constant of higher rank would raise that of the result.
        width: Size of the last axis.
        fill: What to use when there is no value.
        dtype: Type of the new row.

    Returns:
        ``value`` itself where its shape already is ``[width]``.
    """
    if value is None:
        return np.full(width, fill, dtype)
    if value.shape is not None and tuple(value.shape) == (width,):
        return value
    array = constant(value)
    if array is None or array.shape[-1:] not in ((), (1,), (width,)):
        return None
    if array.ndim > rank or array.size not in (1, width):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (width,)))

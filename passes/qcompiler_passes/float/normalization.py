"""What the normalization rules share: reductions over the last axis, scales and shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.analysis.dims import Dims
from qcompiler.ir.edit import Tape, constant
from qcompiler.patterns.match import Match
from qcompiler.patterns.rule import Rule, apply_rules
from qcompiler.patterns.terms import Operators, Term, Var, maybe, one_of
from qcompiler.pipeline.contract import PassResult

__all__ = ["NormalizationRule", "fuse", "inverse_root", "mean_over", "reduced_axes"]


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


class NormalizationRule(Rule):
    """Fuses over the last axis, where the pattern captures means, ``epsilon``, scale and shift.

    Attributes:
        operator: What it becomes: ``operator(x, scale[, shift])``.
    """

    operator: ClassVar[str]

    def __init__(self, dims: Dims) -> None:
        self.dims = dims

    def source(self, m: Match) -> ir.Value:
        """What is normalized."""
        return m["x"]

    def where(self, m: Match) -> str | None:
        """The axes must be the last one; scale and shift must be rows along it."""
        for name in ("mean", "variance", "mean_again"):
            if name in m.captured:
                reason = _why_not_last_axis(m, name, self.dims)
                if reason is not None:
                    return reason
        if m.scalar("epsilon") is None:
            return "epsilon is not a constant number"
        width = self._width(m)
        if width is None:
            return "the size of the last axis is unknown"
        for name in ("scale", "shift"):
            if self._row(m, name, width, 0.0, np.float32) is None:
                return f"{name} %{m[name].name} is not a row of {width}"
        return None

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node; a missing scale becomes ones, which the operator demands."""
        x, width = self.source(m), self._width(m)
        assert width is not None, "where() has looked"
        dtype = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
        rows = [self._row(m, "scale", width, 1.0, dtype)]
        if "shift" in m:
            rows.append(self._row(m, "shift", width, 0.0, dtype))
        result: ir.Value = tape.op(self.operator, x, *rows, axis=-1, epsilon=m.scalar("epsilon"))
        return result

    def _width(self, m: Match) -> int | None:
        return _width_of(self.dims, self.source(m), m.get("scale"), m.get("shift"))

    def _row(
        self, m: Match, name: str, width: int, fill: float, dtype: npt.DTypeLike
    ) -> ir.Value | npt.NDArray[np.generic] | None:
        rank = len(self.dims.shape(self.source(m)) or (width,))
        return _row_of(m.get(name), rank, width, fill, dtype)


def fuse(
    model: ir.Model, since: int, rules: Sequence[type[NormalizationRule]], pass_name: str
) -> PassResult:
    """Apply rules in their order, from the opset on that has their operator."""
    if (model.opset_imports.get("") or 0) < since:
        return PassResult(False)
    if not any(node.op_type == "ReduceMean" for node in model.graph):
        return PassResult(False)
    dims = Dims(model.graph)
    made = [rule(dims) for rule in rules]
    return PassResult(apply_rules(model.graph, made, pass_name).modified)


def _why_not_last_axis(m: Match, name: str, dims: Dims) -> str | None:
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


def _width_of(dims: Dims, x: ir.Value, *rows: ir.Value | None) -> int | None:
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


def _row_of(
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

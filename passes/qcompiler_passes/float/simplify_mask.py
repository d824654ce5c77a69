"""Undo the detours by which exporters build attention masks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.analysis.dims import Dim, Dims
from qcompiler.ir.edit import Tape, constant
from qcompiler.patterns.match import Match, scalar_of
from qcompiler.patterns.rule import Rule, apply_rules
from qcompiler.patterns.terms import Operators, Term, Var
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["SimplifyMask"]

_MASK_OPS = frozenset({"And", "GatherND"})


@dataclasses.dataclass(frozen=True, slots=True)
class _Grid:
    """A tensor whose element is its own index along one axis.

    Attributes:
        axis: The axis, counted from the last (-1, -2 ...).
        length: How many there are.
    """

    axis: int
    length: Dim


def _grid(dims: Dims, value: ir.Value | None) -> _Grid | None:
    """Whether ``value`` is Range(0, n), with axes of size 1 put in or repeated along."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return None
    source = node.inputs[0]
    if node.op_type == "Range":
        start, limit, step = (dims.numbers(item) for item in node.inputs)
        return _Grid(-1, limit[0]) if start == (0,) and step == (1,) and limit else None
    inner = _grid(dims, source)
    if inner is None or source is None or node.op_type not in ("Cast", "Expand", "Unsqueeze"):
        return None
    if node.op_type == "Unsqueeze":
        rank, axes = len(dims.shape(source) or ()), dims.numbers(node.inputs[1])
        if axes is None or not all(isinstance(axis, int) for axis in axes):
            return None
        total = rank + len(axes)
        new = {axis % total for axis in axes if isinstance(axis, int)}
        kept = [axis for axis in range(total) if axis not in new]
        return _Grid(kept[inner.axis] - total, inner.length)
    return inner


def _is_true(dims: Dims, value: ir.Value | None) -> bool:
    """Whether every element of ``value`` is True whatever the input is."""
    if value is None:
        return False
    array = constant(value) if value.dtype in (None, ir.DataType.BOOL) else None
    if array is not None:
        return bool(array.dtype == np.bool_ and array.all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in ("Expand", "Unsqueeze", "Identity", "Reshape", "Transpose"):
        return _is_true(dims, node.inputs[0])
    if node.op_type == "And":
        return all(_is_true(dims, item) for item in node.inputs)
    if node.op_type in ("GreaterOrEqual", "Greater"):
        index, bound = node.inputs
        least = scalar_of(bound)
        if least is None or _grid(dims, index) is None:
            return False
        return least <= 0 if node.op_type == "GreaterOrEqual" else least < 0
    return False


class _WithDims(Rule):
    def __init__(self, dims: Dims) -> None:
        self.dims = dims


class GatherGrid(_WithDims):
    """``data[i, j]`` gathered at every i and j is ``data`` with axes of size 1.

    transformers looks its padding mask up by index, under vmap, so that masks can be composed.
    """

    name = "gather-grid"

    def pattern(self, op: Operators, data: Var, i: Var, j: Var, i_axis: Var, j_axis: Var) -> Term:
        """The index is two grids side by side."""
        pair = op.Concat(op.Unsqueeze(i, i_axis), op.Unsqueeze(j, j_axis))
        return op.GatherND(data, pair.named("pair"))

    def where(self, m: Match) -> str | None:
        """The grids must cover ``data``, rows before columns, and nothing else."""
        shape, rows, columns = self.dims.shape(m["data"]), *self._grids(m)
        out = self.dims.shape(m.root.outputs[0]) or self._out(m)
        if shape is None or rows is None or columns is None or out is None:
            return "the index is no grid, or the rank of the data is unknown"
        if m.root.attributes.get_int("batch_dims", 0) or len(shape) != 2:
            return "not a plain look-up in a matrix"
        last = len(out)
        for key in ("i_axis", "j_axis"):
            if self.dims.numbers(m[key]) not in ((-1,), (last,)):
                return "the index does not put row and column side by side"
        if m.node("pair").attributes.get_int("axis", 0) not in (-1, last):
            return "the index does not put row and column side by side"
        if shape != (rows.length, columns.length) or not rows.axis < columns.axis:
            return f"grids of {rows.length} and {columns.length} do not cover {shape}"
        rest = [size for axis, size in enumerate(out, -last) if axis not in _axes(rows, columns)]
        return None if all(size == 1 for size in rest) else "the look-up repeats the data"

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """Put in the axes."""
        rows, columns = self._grids(m)
        out = self._out(m)
        assert rows is not None, "where() has looked"
        assert columns is not None, "where() has looked"
        assert out is not None, "where() has looked"
        new = [axis for axis in range(-len(out), 0) if axis not in _axes(rows, columns)]
        if not new:
            return m["data"]
        axes = np.array([axis + len(out) for axis in new], np.int64)
        result: ir.Value = tape.op("Unsqueeze", m["data"], axes)
        return result

    def _grids(self, m: Match) -> tuple[_Grid | None, _Grid | None]:
        return _grid(self.dims, m["i"]), _grid(self.dims, m["j"])

    def _out(self, m: Match) -> tuple[Dim, ...] | None:
        return self.dims.shape(m["i"])


def _axes(rows: _Grid, columns: _Grid) -> tuple[int, int]:
    return rows.axis, columns.axis


class AndTrue(_WithDims):
    """``And(x, true)`` is ``x``, repeated to the shape of both."""

    name = "and-true"

    def pattern(self, op: Operators, x: Var, true: Var) -> Term:
        """Either order."""
        return op.And(x, true)

    def where(self, m: Match) -> str | None:
        """Every element must be True, and the sizes must have a source."""
        if not _is_true(self.dims, m["true"]):
            return f"%{m['true'].name} is not always True"
        x, true = self.dims.shape(m["x"]), self.dims.shape(m["true"])
        if x is None or true is None:
            return "a rank is unknown"
        if any(self.dims.source(size) is None for size in true if not isinstance(size, int)):
            return "a size has no source"
        return None

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """``x`` itself, or an Expand."""
        x, true = self.dims.shape(m["x"]), self.dims.shape(m["true"])
        assert x is not None, "where() has looked"
        assert true is not None, "where() has looked"
        behind = x[len(x) - len(true) :] if len(true) <= len(x) else ()
        if len(behind) == len(true) and all(
            size in (1, own) for size, own in zip(true, behind, strict=True)
        ):
            return m["x"]
        target = self.dims.write(tape, true)
        assert target is not None, "where() has looked"
        result: ir.Value = tape.op("Expand", m["x"], target)
        return result


class ExpandLast(_WithDims):
    """``Where(Expand(c), a, b)`` with numbers a and b: choose first, repeat afterwards."""

    name = "expand-last"

    def pattern(self, op: Operators, condition: Var, shape: Var, a: Var, b: Var) -> Term:
        """Both choices constant."""
        return op.Where(op.Expand(condition, shape), a, b)

    def where(self, m: Match) -> str | None:
        """The choices must not have more axes than the condition."""
        if m.scalar("a") is None or m.scalar("b") is None:
            return "the choices are no numbers"
        return None if self.dims.shape(m["condition"]) else "the condition is a scalar"

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """The other way round."""
        chosen = tape.op("Where", m["condition"], m["a"], m["b"])
        result: ir.Value = tape.op("Expand", chosen, m["shape"])
        return result


@dataclasses.dataclass(frozen=True)
class SimplifyMask(Pass):
    """Turn a mask that was looked up by index grids back into the mask.

    Given:   %g = GatherND(%mask, Concat(grid of rows, grid of columns)); %ok = And(%always, %g)
             %y = Where(%ok, 0, -inf)
    Result:  %u = Unsqueeze(%mask); %w = Where(%u, 0, -inf); %y = Expand(%w)

    Always True is what comes from comparing an index with 0. Twenty small nodes of torch's exporter
    become six. Only the main graph.
    """

    name: ClassVar[str] = "simplify-mask"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Apply the rules."""
        if not any(node.op_type in _MASK_OPS for node in model.graph):
            return PassResult(False)
        dims = Dims(model.graph)
        rules = (GatherGrid(dims), AndTrue(dims), ExpandLast(dims))
        return PassResult(apply_rules(model.graph, rules, self.name).modified)

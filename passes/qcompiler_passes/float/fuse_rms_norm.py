"""Gather the arithmetic of root-mean-square normalization into one operator."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.analysis.dims import Dims
from qcompiler.ir.edit import Tape
from qcompiler.patterns.match import Match, Operators, Term, Var, one_of
from qcompiler.patterns.rule import Rule, apply_rules
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler_passes.float.normalization import (
    inverse_root,
    mean_over,
    row_of,
    why_not_last_axis,
    width_of,
)

__all__ = ["FuseRmsNorm"]

_SINCE = 23  # opset of RMSNormalization


class _RmsNormRule(Rule):
    """What the sizes of the pattern share."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims

    def where(self, m: Match) -> str | None:
        """The axis must be the last one, the scale a row along it, casts there and back."""
        reason = why_not_last_axis(m, "mean", self.dims)
        if reason is not None:
            return reason
        if m.scalar("epsilon") is None:
            return "epsilon is not a constant number"
        x = _source(m)
        width = width_of(self.dims, x, m.get("scale"))
        if width is None:
            return "the size of the last axis is unknown"
        rank = len(self.dims.shape(x) or (width,))
        if row_of(m.get("scale"), rank, width, 1.0, np.float32) is None:
            return f"scale %{m['scale'].name} is not a row of {width}"
        if "widened" in m.captured and not _casts_meet(m):
            return "the result is not cast back to the type that the input was cast from"
        return None

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node; it computes in float32 (stash_type) whatever the type of its input."""
        x = _source(m)
        dtype = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
        width = width_of(self.dims, x, m.get("scale"))
        assert width is not None, "where() has looked"
        rank = len(self.dims.shape(x) or (width,))
        scale = row_of(m.get("scale"), rank, width, 1.0, dtype)
        result: ir.Value = tape.op(
            "RMSNormalization", x, scale, axis=-1, epsilon=m.scalar("epsilon")
        )
        return result


def _source(m: Match) -> ir.Value:
    """The input before it was widened to float32, where it was."""
    return m["narrow"] if "narrowed" in m.captured else m["x"]


def _casts_meet(m: Match) -> bool:
    if "narrowed" not in m.captured:
        return True
    source = m["narrow"].dtype
    to = m.node("narrowed").attributes.get_int("to")
    wide = m.node("widened").attributes.get_int("to")
    return source is not None and to == source.value and wide == ir.DataType.FLOAT.value


def _normalized(op: Operators, x: Term, epsilon: Var) -> Term:
    square = one_of(op.Pow(x, 2.0), op.Mul(x, x))
    shifted = op.Add(mean_over(op, square, "mean"), epsilon)
    return one_of(inverse_root(op, x, op.Sqrt(shifted)), op.Mul(x, op.Pow(shifted, -0.5)))


class CastScaled(_RmsNormRule):
    """``scale * cast(normalized(float32(x)))``: how half-precision Llamas do it."""

    name = "rms-norm-cast"

    def pattern(self, op: Operators, narrow: Var, epsilon: Var, scale: Var) -> Term:
        """Cast up, normalize, cast down, scale."""
        wide = op.Cast(narrow).named("widened").may_be_shared()
        narrowed = op.Cast(_normalized(op, wide, epsilon)).named("narrowed")
        return op.Mul(narrowed, scale)


class Scaled(_RmsNormRule):
    """``x / sqrt(mean(x^2) + epsilon) * scale``."""

    name = "rms-norm"

    def pattern(self, op: Operators, x: Var, epsilon: Var, scale: Var) -> Term:
        """In one type."""
        return op.Mul(_normalized(op, x, epsilon), scale)


class Plain(_RmsNormRule):
    """``x / sqrt(mean(x^2) + epsilon)``."""

    name = "rms-norm-without-scale"

    def pattern(self, op: Operators, x: Var, epsilon: Var) -> Term:
        """Without the scale."""
        return _normalized(op, x, epsilon)


@dataclasses.dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """Fuse a decomposed RMS normalization over the last axis, from opset 23 on.

    Given:   %p = Pow(%x, 2); %m = ReduceMean(%p, [-1]); %e = Add(%m, %eps); %s = Sqrt(%e)
             %r = Reciprocal(%s); %n = Mul(%x, %r); %y = Mul(%scale, %n)
    Result:  %y = RMSNormalization(%x, %scale) axis=-1

    Formula: Zhang and Sennrich 2019, eq. 4. Only the main graph. Runs behind fuse-layer-norm: the
    centred rows of a layer normalization match the same arithmetic.
    """

    name: ClassVar[str] = "fuse-rms-norm"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Apply the rules, the largest pattern first."""
        if (model.opset_imports.get("") or 0) < _SINCE:
            return PassResult(False)
        if not any(node.op_type == "ReduceMean" for node in model.graph):
            return PassResult(False)
        dims = Dims(model.graph)
        rules = (CastScaled(dims), Scaled(dims), Plain(dims))
        return PassResult(apply_rules(model.graph, rules, self.name).modified)

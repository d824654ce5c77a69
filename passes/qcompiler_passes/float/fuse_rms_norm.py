"""Gather the arithmetic of root-mean-square normalization into one operator."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.patterns.match import Match
from qcompiler.patterns.terms import Operators, Term, Var, one_of
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler_passes.float.normalization import (
    NormalizationRule,
    fuse,
    inverse_root,
    mean_over,
)

__all__ = ["FuseRmsNorm"]

_SINCE = 23  # opset of RMSNormalization


class _RmsNormRule(NormalizationRule):
    operator = "RMSNormalization"  # computes in float32 (stash_type) whatever its input's type

    def source(self, m: Match) -> ir.Value:
        """The input before it was widened to float32, where it was."""
        return m["narrow"] if "narrowed" in m.captured else m["x"]

    def where(self, m: Match) -> str | None:
        """Besides, casts must lead there and back."""
        reason = super().where(m)
        if reason is None and not _casts_meet(m):
            return "the result is not cast back to the type that the input was cast from"
        return reason


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
        return fuse(model, _SINCE, (CastScaled, Scaled, Plain), self.name)

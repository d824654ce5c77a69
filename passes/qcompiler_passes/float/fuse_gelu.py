"""Gather the arithmetic of GELU into one operator."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.patterns.match import Match
from qcompiler.patterns.rule import Rule, apply_rules
from qcompiler.patterns.terms import Call, OneOf, Operators, Term, Var, one_of
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["FuseGelu"]

_SINCE = 20  # opset of ai.onnx Gelu


def _gated(op: Operators, x: Var, gate: Term) -> OneOf:
    """``0.5 * x * gate`` in every order of multiplication; ``x / 2`` too."""
    half = one_of(op.Mul(x, 0.5), op.Div(x, 2.0))
    return one_of(
        op.Mul(half, gate),
        op.Mul(op.Mul(x, gate), 0.5),
        op.Div(op.Mul(x, gate), 2.0),
        op.Mul(x, one_of(op.Mul(gate, 0.5), op.Div(gate, 2.0))),
    )


class ErfGelu(Rule):
    """``0.5 * x * (1 + erf(x / sqrt(2)))`` is ``Gelu(x)`` (Hendrycks and Gimpel 2016, eq. 1)."""

    name = "erf-gelu"

    def pattern(self, op: Operators, x: Var) -> OneOf:
        """Any order of the factors; ``x / sqrt(2)`` or ``x * sqrt(1/2)``."""
        inside = one_of(op.Div(x, math.sqrt(2)), op.Mul(x, math.sqrt(0.5)))
        # 0.5 may also be inside: 0.5 + 0.5 * erf
        halved = op.Add(op.Mul(op.Erf(inside), 0.5), 0.5)
        return one_of(_gated(op, x, op.Add(op.Erf(inside), 1.0)), op.Mul(x, halved))

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node; the default approximation is the exact one."""
        result: ir.Value = tape.op("Gelu", m["x"])
        return result


class TanhGelu(Rule):
    """``0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))`` is ``Gelu(x)``, tanh form."""

    name = "tanh-gelu"

    def pattern(self, op: Operators, x: Var) -> OneOf:
        """Any order of the factors; ``x^3`` as Pow or products; sqrt(2/pi) multiplied in or not."""
        a, root = 0.044715, math.sqrt(2 / math.pi)
        square = one_of(op.Mul(x, x), op.Pow(x, 2.0))
        cube = one_of(op.Pow(x, 3.0), op.Mul(x, square))
        term = one_of(
            op.Mul(cube, a),
            op.Mul(square, op.Mul(x, a)),
            op.Mul(x, op.Mul(x, op.Mul(x, a))),
            op.Mul(x, op.Mul(square, a)),
        )
        poly = op.Add(op.Mul(square, a), 1.0)
        poly_two = op.Add(op.Mul(x, op.Mul(x, a)), 1.0)
        inside = one_of(
            op.Mul(op.Add(x, term), root),
            op.Mul(op.Mul(x, root), one_of(poly, poly_two)),
            op.Mul(op.Mul(x, one_of(poly, poly_two)), root),
            op.Mul(x, op.Add(op.Mul(square, a * root), root)),
        )
        return _gated(op, x, op.Add(op.Tanh(inside), 1.0))

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node."""
        result: ir.Value = tape.op("Gelu", m["x"], approximate="tanh")
        return result


class ContribGelu(Rule):
    """``com.microsoft:Gelu(x)`` is the standard operator under its older name."""

    name = "contrib-gelu"

    def pattern(self, op: Operators, x: Var) -> Call:
        """One node."""
        return op("com.microsoft:Gelu", x)

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node."""
        result: ir.Value = tape.op("Gelu", m["x"])
        return result


@dataclasses.dataclass(frozen=True)
class FuseGelu(Pass):
    """Fuse the erf and the tanh form of GELU into ai.onnx Gelu, from opset 20 on.

    Given:   %a = Div(%x, 1.41421); %b = Erf(%a); %c = Add(%b, 1); %d = Mul(%x, %c)
             %y = Mul(%d, 0.5)
    Result:  %y = Gelu(%x)

    Only the main graph; results that something else reads are left alone.
    """

    name: ClassVar[str] = "fuse-gelu"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Apply the rules."""
        if (model.opset_imports.get("") or 0) < _SINCE:
            return PassResult(False)
        rules = (ErfGelu(), TanhGelu(), ContribGelu())
        return PassResult(apply_rules(model.graph, rules, self.name).modified)

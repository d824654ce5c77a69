"""Gather x * sigmoid(x) and x * hard-sigmoid(x) into one operator, where the target gains."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.ir.edit import Tape, import_domain
from qcompiler.patterns.match import Match
from qcompiler.patterns.rule import Rule, apply_rules
from qcompiler.patterns.terms import Operators, Term, Var, one_of
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.targets.schema import Form

__all__ = ["FuseSilu"]

_SINCE = 14  # opset of HardSwish
_MICROSOFT = "com.microsoft"


def _is_slope(attr: ir.Attr | None) -> bool:
    """HardSwish has slope 1/6; HardSigmoid's default is 0.2."""
    return attr is not None and abs(float(attr.value) - 1 / 6) < 1e-6


def _is_half(attr: ir.Attr | None) -> bool:
    return attr is None or abs(float(attr.value) - 0.5) < 1e-6


class HardSwishRule(Rule):
    """``x * max(0, min(1, x / 6 + 1/2))`` is ``HardSwish(x)`` (Howard et al. 2019, section 5.2)."""

    name = "hard-swish"

    def pattern(self, op: Operators, x: Var) -> Term:
        """With HardSigmoid, Clip or Relu6-like Clip, the division in any place."""
        gate = op.HardSigmoid(x, alpha=_is_slope, beta=_is_half)
        six = op.Clip(op.Add(x, 3.0), 0.0, 6.0)
        sixth = 1 / 6
        return one_of(
            op.Mul(x, gate),
            op.Div(op.Mul(x, six), 6.0),
            op.Mul(op.Mul(x, six), sixth),
            op.Mul(x, one_of(op.Div(six, 6.0), op.Mul(six, sixth))),
            op.Mul(six, one_of(op.Div(x, 6.0), op.Mul(x, sixth))),
        )

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node."""
        result: ir.Value = tape.op("HardSwish", m["x"])
        return result


@dataclasses.dataclass(frozen=True)
class SwishRule(Rule):
    """``x * sigmoid(alpha * x)`` is ONNX Runtime's ``QuickGelu``.

    The standard Swish (opset 24) has no kernel in ONNX Runtime 1.31.1: it is expanded and takes
    0.53 to 0.66 ns an element where QuickGelu takes 0.18 to 0.22 (alpha 1; one thread, measured).

    Attributes:
        keep_behind_conv: Leave it where ``x`` comes from a convolution.
    """

    keep_behind_conv: bool = False
    name: ClassVar[str] = "swish"

    def pattern(self, op: Operators, x: Var, alpha: Var) -> Term:
        """With and without a factor."""
        return op.Mul(x, op.Sigmoid(one_of(x, op.Mul(x, alpha))))

    def where(self, m: Match) -> str | None:
        """The factor must be a number; float32 is what the kernel computes."""
        x = m["x"]
        if x.dtype not in (None, ir.DataType.FLOAT):
            return f"%{x.name} is not float32"
        if "alpha" in m and m.scalar("alpha") is None:
            return "the factor of the sigmoid is not a constant number"
        producer = x.producer()
        if self.keep_behind_conv and producer is not None and producer.op_type == "Conv":
            return "the target computes Sigmoid and Mul in low precision behind a Conv"
        return None

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node of com.microsoft."""
        alpha = m.scalar("alpha") if "alpha" in m else 1.0
        result: ir.Value = tape.op("QuickGelu", m["x"], domain=_MICROSOFT, alpha=alpha)
        return result


@dataclasses.dataclass(frozen=True)
class FuseSilu(Pass):
    """Fuse HardSwish from opset 14 on, and SiLU for ONNX Runtime's own form.

    Given:   %s = Sigmoid(%x); %y = Mul(%x, %s)
    Result:  %y = com.microsoft:QuickGelu(%x) alpha=1

    SiLU stays as it is for other runtimes, in the portable form, and behind a Conv where the target
    has low-precision Sigmoid and Mul: there the integer pair costs less than QuickGelu and the two
    conversions around it. Only the main graph.
    """

    name: ClassVar[str] = "fuse-silu"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Apply the rules that the target wants."""
        rules: list[Rule] = []
        if (model.opset_imports.get("") or 0) >= _SINCE:
            rules.append(HardSwishRule())
        if state.target.runtime == "onnxruntime" and state.form is Form.ORT:
            computed = {row.op for row in state.target.kernels}
            rules.append(SwishRule(keep_behind_conv={"Sigmoid", "Mul"} <= computed))
        applied = apply_rules(model.graph, rules, self.name)
        if applied.rewrites.get(SwishRule.name):
            import_domain(model, _MICROSOFT)
        return PassResult(applied.modified)

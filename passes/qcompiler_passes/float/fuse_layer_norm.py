"""Gather the arithmetic of layer normalization into one operator."""

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

__all__ = ["FuseLayerNorm"]

_SINCE = 17  # opset of LayerNormalization


class _LayerNormRule(Rule):
    """What the sizes of the pattern share."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims

    def where(self, m: Match) -> str | None:
        """The axes must be the last one; scale and shift must be rows along it."""
        for name in ("mean", "variance", "mean_again"):
            if name in m.captured:
                reason = why_not_last_axis(m, name, self.dims)
                if reason is not None:
                    return reason
        if m.scalar("epsilon") is None:
            return "epsilon is not a constant number"
        width = width_of(self.dims, m["x"], m.get("scale"), m.get("shift"))
        if width is None:
            return "the size of the last axis is unknown"
        rank = len(self.dims.shape(m["x"]) or (width,))
        for name in ("scale", "shift"):
            if row_of(m.get(name), rank, width, 0.0, np.float32) is None:
                return f"{name} %{m[name].name} is not a row of {width}"
        return None

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """One node; a missing scale becomes ones, which the operator demands."""
        x = m["x"]
        dtype = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
        width = width_of(self.dims, x, m.get("scale"), m.get("shift"))
        assert width is not None, "where() has looked"
        rank = len(self.dims.shape(x) or (width,))
        scale = row_of(m.get("scale"), rank, width, 1.0, dtype)
        shift = row_of(m.get("shift"), rank, width, 0.0, dtype) if "shift" in m else None
        inputs = [x, scale] + ([] if shift is None else [shift])
        result: ir.Value = tape.op(
            "LayerNormalization", *inputs, axis=-1, epsilon=m.scalar("epsilon")
        )
        return result


def _normalized(op: Operators, x: Var, epsilon: Var) -> Term:
    centred = op.Sub(x, mean_over(op, x, "mean"))
    # torch.onnx.export(dynamo=False) subtracts the mean twice over
    again = one_of(centred, op.Sub(x, mean_over(op, x, "mean_again")))
    square = one_of(op.Pow(again, 2.0), op.Mul(again, again))
    root = op.Sqrt(op.Add(mean_over(op, square, "variance"), epsilon))
    power = op.Pow(op.Add(mean_over(op, square, "variance"), epsilon), -0.5)
    return one_of(inverse_root(op, centred, root), op.Mul(centred, power))


class ScaledShifted(_LayerNormRule):
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift``."""

    name = "layer-norm"

    def pattern(self, op: Operators, x: Var, epsilon: Var, scale: Var, shift: Var) -> Term:
        """With the shift."""
        return op.Add(op.Mul(_normalized(op, x, epsilon), scale), shift)


class Regrouped(_LayerNormRule):
    """``x * k + (shift - mean * k)`` with ``k = scale / sqrt(variance + epsilon)``."""

    name = "layer-norm-regrouped"

    def pattern(self, op: Operators, x: Var, epsilon: Var, scale: Var, shift: Var) -> Term:
        """As TensorFlow's batch_normalization writes it."""
        mean = mean_over(op, x, "mean")
        centred = one_of(op.Sub(x, mean), op.Sub(mean, x))
        square = one_of(op.Pow(centred, 2.0), op.Mul(centred, centred))
        root = op.Sqrt(op.Add(mean_over(op, square, "variance"), epsilon))
        k = one_of(op.Mul(op.Reciprocal(root), scale), op.Div(scale, root))
        return op.Add(op.Mul(x, k), op.Sub(shift, op.Mul(mean, k)))


class Scaled(_LayerNormRule):
    """``(x - mean) / sqrt(variance + epsilon) * scale``."""

    name = "layer-norm-without-shift"

    def pattern(self, op: Operators, x: Var, epsilon: Var, scale: Var) -> Term:
        """Without the shift."""
        return op.Mul(_normalized(op, x, epsilon), scale)


class Plain(_LayerNormRule):
    """``(x - mean) / sqrt(variance + epsilon)``."""

    name = "layer-norm-without-scale"

    def pattern(self, op: Operators, x: Var, epsilon: Var) -> Term:
        """Neither scale nor shift."""
        return _normalized(op, x, epsilon)


@dataclasses.dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Fuse a decomposed layer normalization over the last axis, from opset 17 on.

    Given:   %m = ReduceMean(%x, [-1]); %d = Sub(%x, %m); %p = Pow(%d, 2)
             %v = ReduceMean(%p, [-1]); %e = Add(%v, %eps); %s = Sqrt(%e)
             %n = Div(%d, %s); %g = Mul(%n, %scale); %y = Add(%g, %shift)
    Result:  %y = LayerNormalization(%x, %scale, %shift) axis=-1

    Only the main graph. Scale and shift may be missing; constants that broadcast to a row become
    one.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Apply the rules, the largest pattern first."""
        if (model.opset_imports.get("") or 0) < _SINCE:
            return PassResult(False)
        if not any(node.op_type == "ReduceMean" for node in model.graph):
            return PassResult(False)
        dims = Dims(model.graph)
        rules = (ScaledShifted(dims), Regrouped(dims), Scaled(dims), Plain(dims))
        return PassResult(apply_rules(model.graph, rules, self.name).modified)

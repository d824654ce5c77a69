"""Gather the arithmetic of layer normalization into one operator."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.patterns.terms import Operators, Term, Var, one_of
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler_passes.float.normalization import (
    NormalizationRule,
    fuse,
    inverse_root,
    mean_over,
)

__all__ = ["FuseLayerNorm"]

_SINCE = 17  # opset of LayerNormalization


class _LayerNormRule(NormalizationRule):
    operator = "LayerNormalization"


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
        return fuse(model, _SINCE, (ScaledShifted, Regrouped, Scaled, Plain), self.name)

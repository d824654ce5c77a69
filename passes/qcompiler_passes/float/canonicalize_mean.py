"""Write the mean over all positions of an image as GlobalAveragePool."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.analysis.dims import Dims
from qcompiler.ir.edit import Tape
from qcompiler.patterns.match import Match
from qcompiler.patterns.rule import Rule, apply_rules
from qcompiler.patterns.terms import Operators, Term, Var
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler_passes.float.normalization import mean_over, reduced_axes

__all__ = ["CanonicalizeMean"]

_IMAGE = 4  # rank of [N, C, H, W]


@dataclasses.dataclass(frozen=True)
class MeanOverImage(Rule):
    """``ReduceMean`` over the last two axes of four.

    Attributes:
        dims: Dimensions of the graph.
    """

    dims: Dims
    name: ClassVar[str] = "mean-over-image"

    def pattern(self, op: Operators, x: Var) -> Term:
        """With axes as an input or as an attribute."""
        return mean_over(op, x, "mean")

    def where(self, m: Match) -> str | None:
        """The axes and the rank must be known."""
        x, axes = m["x"], reduced_axes(m, "mean")
        if x.dtype not in (None, ir.DataType.FLOAT):
            return f"%{x.name} is not float32"
        if axes is None:
            return f"the axes of {m.node('mean').name} are no constant"
        shape = self.dims.shape(x)
        if shape is None or len(shape) != _IMAGE:
            return f"%{x.name} is no image"
        if sorted(axis % _IMAGE for axis in axes) != [2, 3]:
            return f"{m.node('mean').name} reduces axes {axes}, wanted the last two"
        return None

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        """The pool keeps the axes; Flatten drops them."""
        result: ir.Value = tape.op("GlobalAveragePool", m["x"])
        if m.node("mean").attributes.get_int("keepdims", 1) != 1:
            result = tape.op("Flatten", result, axis=1)
        return result


@dataclasses.dataclass(frozen=True)
class CanonicalizeMean(Pass):
    """Replace a mean over height and width by the operator that runtimes have integers for.

    ONNX Runtime has a QLinearGlobalAveragePool that takes pixels in either order, and no ReduceMean
    of integers: behind convolutions in 8 bits that one needs a Transpose of the whole image and a
    DequantizeLinear (together 8 % of the time of EfficientNet-Lite0, batch 8, onnxruntime 1.31.1,
    AVX512-VNNI).

    Given:   %y = ReduceMean(%x, [2, 3]) keepdims=0
    Result:  %p = GlobalAveragePool(%x); %y = Flatten(%p) axis=1

    Only the main graph, and float32.
    """

    name: ClassVar[str] = "canonicalize-mean"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Apply the rule."""
        if not any(node.op_type == "ReduceMean" for node in model.graph):
            return PassResult(False)
        rules = (MeanOverImage(Dims(model.graph)),)
        return PassResult(apply_rules(model.graph, rules, self.name).modified)

"""Measure by how much the outputs of quantized convolutions are off in the mean."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler_passes.weights.walking import unwalked, walk_of

if TYPE_CHECKING:
    from qcompiler.algorithms.side_by_side import Layer

__all__ = ["MeasureMeanErrors"]


@dataclasses.dataclass(frozen=True)
class MeasureMeanErrors(Pass):
    """Fill ``state.bias_shifts``: what float gives in the mean over what the quantized model gives.

    Layer by layer in the order of the graph, each with all before it quantized and corrected
    (empirical bias correction, Nagel et al. 2019, arXiv 1906.04721, appendix D). ``correct-biases``
    then adds it. Runs where the recipe says ``correct_biases = "empirical"``; ``learn-rounding``
    measures the same on its way.
    """

    name: ClassVar[str] = "measure-mean-errors"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Leave model and weights as they are.

        Raises:
            QcError: See :func:`~qcompiler_passes.weights.walking.walk_of`.
        """
        wanted = state.recipe.correct_biases == "empirical" and not state.bias_shifts
        if not wanted or not state.weights:
            return PassResult(modified=False)
        walk, _ = walk_of(model.graph, state, "correct_biases", "'empirical'")
        shifts: dict[str, npt.NDArray[np.float64]] = {}

        def visit(layer: Layer) -> None:
            if layer.node.op_type == "Conv":
                layer.shift = layer.mean_error()
                shifts[layer.node.name or ""] = layer.shift

        walk.run(visit)
        state.bias_shifts = shifts
        layers = [node for node in model.graph if node.op_type == "Conv"]
        planned = [node for node in layers if (node.name or "", 1) in state.weights]
        said = tuple(unwalked(walk, planned, Code.BIAS_ESTIMATED))
        return PassResult(modified=False, diagnostics=said)

"""Learn for each weight whether it is rounded down or up (AdaRound), layer by layer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import constant
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler_passes.apply.correct_biases import mean_shift
from qcompiler_passes.planned import fused_behind
from qcompiler_passes.weights.walking import unwalked, walk_of

if TYPE_CHECKING:
    from qcompiler.algorithms.side_by_side import Layer

__all__ = ["LearnRounding"]

Wide = npt.NDArray[np.float64]

_FEW = 16
_SHAPES = ("Relu", "Clip", "LeakyRelu")  # what may follow a layer and tells which errors matter


@dataclasses.dataclass(frozen=True)
class LearnRounding(Pass):
    """Replace integers of convolutions and matrix products by learned ones.

    The float model and its quantized twin run side by side on some of the data. In the order of
    the graph each layer learns, from what it gets in the *quantized* model, to give what it gives
    in the float model behind its activation function (:mod:`qcompiler.algorithms.adaround`). Layers
    behind it see its result, with its bias as ``correct-biases`` will make it. A layer that is no
    better on samples held out keeps the integers that it had, and so does one behind an operator
    that has no differentiable form (LSTM, If, Loop). Scales, types and structure stay.

    Runs where the recipe says ``weights.rounding = "adaround"``.

    Attributes:
        iterations: Training steps of a layer.
        crops: Crops of a picture that a convolution learns from.
    """

    name: ClassVar[str] = "learn-rounding"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    iterations: int = 200
    crops: int = 8

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Replace tensors of ``state.weights`` and fill ``state.bias_shifts``.

        Raises:
            QcError: QC411, torch is not installed, or the data can be read only once.
        """
        if state.recipe.weights.rounding != "adaround" or not state.weights:
            return PassResult(modified=False)
        walk, count = walk_of(model.graph, state, "weights.rounding", "'adaround'")
        learner = _Learner(self, state, len(_layers(model.graph, state)))
        walk.run(learner.visit)
        layers = _layers(model.graph, state)
        learner.said.extend(unwalked(walk, layers, Code.ROUNDING_KEPT))
        state.weights = {**state.weights, **walk.weights}
        state.bias_shifts = learner.shifts
        if count < _FEW:
            learner.said.append(
                Diagnostic(
                    Code.FEW_FOR_LEARNING,
                    "calibration",
                    f"rounding was learned from {count} samples, wanted at least {_FEW}",
                    "give more samples that are like the real inputs",
                    {"samples": count},
                )
            )
        return PassResult(modified=False, diagnostics=tuple(learner.said))


def _layers(graph: ir.Graph, state: State) -> list[ir.Node]:
    assert state.weights is not None
    return [
        node
        for node in graph
        if (node.name or "", 1) in state.weights and node.op_type in ("Conv", "MatMul")
    ]


class _Learner:
    """What is done at each layer."""

    def __init__(self, options: LearnRounding, state: State, count: int) -> None:
        self.options = options
        self.state = state
        self.count = count
        self.done = 0
        self.began = time.perf_counter()
        self.shifts: dict[str, Wide] = {}
        self.said: list[Diagnostic] = []
        self.rng = np.random.default_rng(state.recipe.seed)

    def visit(self, layer: Layer) -> None:
        """Learn one layer's rounding, then find the shift of its bias."""
        self._tell(layer.node)
        why = _refusal(layer.node, layer.weight)
        if why:
            self._say(Code.ROUNDING_KEPT, layer.node, why)
        else:
            self._learn(layer, self._shift(layer))
        layer.shift = self._shift(layer)
        if layer.shift is not None and self.state.recipe.correct_biases == "empirical":
            self.shifts[layer.node.name or ""] = layer.shift
        self.done += 1

    def _shift(self, layer: Layer) -> Wide | None:
        """What ``correct-biases`` will add to the bias, with the weight as it is now."""
        wanted, statistics = self.state.recipe.correct_biases, self.state.statistics
        if not wanted or layer.node.op_type != "Conv":
            return None
        if wanted == "empirical":
            return layer.mean_error()
        if statistics is None:
            return None
        return mean_shift(layer.node, layer.weight, statistics, self.state)

    def _learn(self, layer: Layer, shift: Wide | None) -> None:
        from qcompiler.algorithms.adaround import AdaRoundOptions, adaround
        from qcompiler.algorithms.layer_samples import layer_function, sample_layer

        assert self.state.plan is not None
        node = layer.node
        x, weight = node.inputs[0], node.inputs[1]
        array = constant(weight)
        assert x is not None
        assert weight is not None
        assert array is not None
        chain = [node]
        for follower in fused_behind(node, self.state.plan):
            if follower.op_type not in (*_SHAPES, "Add"):
                break
            chain.append(follower)
        targets = layer.float_outputs(chain[-1].outputs[0])
        samples = sample_layer(
            node, array.shape, layer.inputs, targets, self.options.crops, self.rng
        )
        function = layer_function(chain, x, weight, shift=shift)
        result = adaround(
            function,
            np.asarray(array, np.float32),
            layer.weight,
            *samples,
            options=AdaRoundOptions(
                iterations=self.options.iterations, seed=self.state.recipe.seed
            ),
            channel_axis=1 if node.op_type == "Conv" else 2,
        )
        layer.weight = result.tensor
        share = result.mse_after / result.mse_before if result.mse_before else 1.0
        values = {"before": result.mse_before, "after": result.mse_after, "flipped": result.flipped}
        if result.improved:
            message = f"error of the output {share:.2f} of before, {result.flipped} weights flipped"
            self._say(Code.ROUNDING_LEARNED, node, message, values)
        else:
            self._say(Code.ROUNDING_KEPT, node, "learning did not help on held-out samples", values)

    def _tell(self, node: ir.Node) -> None:
        if self.state.progress is None:
            return
        took = time.perf_counter() - self.began
        left = (
            f", about {took / self.done * (self.count - self.done):.0f} s left" if self.done else ""
        )
        self.state.progress(f"learn-rounding {self.done + 1}/{self.count} {node.name}{left}")

    def _say(
        self, code: Code, node: ir.Node, message: str, values: Mapping[str, object] | None = None
    ) -> None:
        self.said.append(Diagnostic(code, node.name or "", message, "", dict(values or {})))


def _refusal(node: ir.Node, start: QTensor) -> str:
    weight = node.inputs[1]
    if weight is None or constant(weight) is None or len(weight.uses()) > 1:
        return "the weight is shared"
    if weight.dtype is not ir.DataType.FLOAT:
        return "the layer does not compute in float32"
    if start.spec.is_float8:
        return "8-bit floats are rounded to nearest"
    return ""

"""Round the kernels of convolutions so that the errors of their outputs are small."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.algorithms.moment_rounding import round_by_moment
from qcompiler.calibration.runner import Statistics
from qcompiler.ir.edit import constant
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State

__all__ = ["RefineRounding"]


@dataclasses.dataclass(frozen=True)
class RefineRounding(Pass):
    """Improve rounded weights by the second moment of the activations they meet.

    Only the integers change: scales, types and structure stay, so a deployed layer costs what it
    did. A layer is left as it is when its inputs were not measured (dynamic and weight-only
    schemes), when its weight is shared, is of 8-bit floats, or has a zero point.

    On EfficientNet-Lite0 this halves the divergence from float, and the depthwise kernels make
    most of it. Transformers gain nothing that could be measured (8-bit weights per channel cost
    them 0.0005 of cosine), so MatMul is left out unless asked for.

    Attributes:
        linear: Also MatMul.
    """

    name: ClassVar[str] = "refine-rounding"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS, Fact.STATISTICS})
    exact: ClassVar[bool] = False

    linear: bool = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Replace tensors of ``state.weights``; the model is untouched."""
        assert state.weights is not None
        assert state.statistics is not None
        if state.recipe.weights.rounding == "nearest":
            return PassResult(modified=False)
        refined: dict[tuple[str, int], QTensor] = {}
        for node in model.graph:
            if node.op_type not in ("Conv", *(("MatMul",) if self.linear else ())):
                continue
            start = state.weights.get((node.name or "", 1))
            better = None if start is None else self._refine(node, start, state.statistics)
            if better is not None:
                refined[node.name or "", 1] = better
        if refined:  # weights that are read from files stay there
            state.weights = {**state.weights, **refined}
        return PassResult(modified=False)

    def _refine(self, node: ir.Node, start: QTensor, statistics: Statistics) -> QTensor | None:
        value, weight = node.inputs[0], node.inputs[1]
        array = constant(weight)
        if value is None or weight is None or array is None or start.zero_point is not None:
            return None
        is_matmul = node.op_type == "MatMul"
        if len(weight.uses()) > 1 or start.spec.group_size is not None or start.spec.is_float8:
            return None
        if start.spec.axis not in (None, (1 if is_matmul else 0)):
            return None
        moment = statistics.second_moment(value.name or "", node.name or "")
        if moment is None:
            return None
        floats = np.asarray(array, np.float32)
        if not is_matmul:
            return round_by_moment(floats, start, moment)
        turned = dataclasses.replace(start.spec, axis=None if start.spec.axis is None else 0)
        across = QTensor(start.q.T, start.scale.T, None, turned)
        found = round_by_moment(floats.T, across, moment)
        return QTensor(np.ascontiguousarray(found.q.T), start.scale, None, start.spec)

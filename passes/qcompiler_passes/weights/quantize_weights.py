"""Round the constants that planned kernels take in low precision."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.rtn import CLIP_RATIOS, round_to_nearest
from qcompiler.diagnostics import QcError
from qcompiler.ir.edit import constant
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Plan, Verdict
from qcompiler.schemes import QSpec
from qcompiler_passes.planned import bias_operand, fused_behind, stored_parameters

__all__ = ["QuantizeWeights", "WeightUse", "planned_weights"]

# A bias is stored as int32 in steps of x_scale * w_scale. The steps must be so large that the
# bias stays below 2^30: half of the range is left to the sum it is added to.
_LARGEST_BIAS = float(2**30)


@dataclasses.dataclass(frozen=True, slots=True)
class WeightUse:
    """One constant operand of a planned kernel.

    Attributes:
        node: The node that reads it.
        index: Which input it is.
        value: The constant.
        spec: How the kernel takes it.
    """

    node: ir.Node
    index: int
    value: ir.Value
    spec: QSpec


def planned_weights(graph: ir.Graph, plan: Plan) -> Iterator[WeightUse]:
    """Every constant that a kernel of the plan takes in low precision, in graph order."""
    for node in graph:
        decision = plan.nodes.get(node.name or "")
        if decision is None or decision.verdict is not Verdict.QUANTIZED:
            continue
        for index, spec in enumerate(decision.inputs):
            value = node.inputs[index] if index < len(node.inputs) else None
            if spec is not None and value is not None and constant(value) is not None:
                yield WeightUse(node, index, value, spec)


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round to nearest every weight that the plan gives a spec to.

    A weight shared by several nodes under one spec is rounded once and stays shared. A channel
    whose bias would not fit int32 in steps of ``x_scale * w_scale`` (channels that pruning or a
    folded batch norm left near zero) gets a larger scale.

    Attributes:
        clip: Search clipped ranges for weights of 4 bits and fewer.
    """

    name: ClassVar[str] = "quantize-weights"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    clip: bool = True

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.weights``; the model is untouched."""
        assert state.plan is not None
        uses = list(planned_weights(model.graph, state.plan))
        distinct = list(dict.fromkeys((use.value, use.spec) for use in uses))
        first = {(use.value, use.spec): use for use in reversed(uses)}
        # rounding is numpy work outside the interpreter lock: one thread per processor
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            tensors = pool.map(lambda key: self._round(first[key], None), distinct)
            shared = dict(zip(distinct, tensors, strict=True))
        rounded: dict[tuple[str, int], QTensor] = {}
        for use in uses:
            weight = shared[use.value, use.spec]
            floor = smallest_scale(use, state)
            if floor is not None and (weight.scale < floor).any():
                weight = self._round(use, floor)
            rounded[use.node.name or "", use.index] = weight
        state.weights = rounded
        return PassResult(modified=False)

    def _round(self, use: WeightUse, floor: npt.NDArray[np.float32] | None) -> QTensor:
        array = constant(use.value)
        assert array is not None
        few_bits = (use.spec.bits or use.spec.dtype.bitwidth) <= 4
        return round_to_nearest(
            np.asarray(array, np.float32),
            use.spec,
            where=f"{use.value.name} of {use.node.name}",
            clip_ratios=CLIP_RATIOS if self.clip and few_bits else (1.0,),
            smallest_scale=floor,
        )


def smallest_scale(use: WeightUse, state: State) -> npt.NDArray[np.float32] | None:
    """Smallest weight scale under which the node's bias fits int32, shaped as the scale.

    None when the kernel has no bias, leaves it in float, or takes its activation without a static
    scale.
    """
    assert state.plan is not None
    decision = state.plan.nodes[use.node.name or ""]
    spec = decision.inputs[0] if decision.inputs else None
    x = use.node.inputs[0]
    if use.index != 1 or spec is None or spec.dynamic or x is None or use.spec.is_float8:
        return None
    bias = _bias(use.node, state.plan)
    if bias is None:
        return None
    try:
        x_scale, _ = stored_parameters(state, x.name or "")
    except QcError:
        return None  # no ranges yet: insert-qdq will say so
    size = np.abs(bias.astype(np.float64))
    size[~np.isfinite(size)] = 0.0  # a mask (-inf) never fits, and saturates
    floor = size / (float(x_scale) * _LARGEST_BIAS)
    array = constant(use.value)
    assert array is not None
    shape = [1] * array.ndim
    if use.spec.axis is None:
        floor = floor.max(initial=0.0)
    else:
        shape[use.spec.axis] = -1
    return floor.reshape(shape).astype(np.float32)


def _bias(node: ir.Node, plan: Plan) -> npt.NDArray[np.generic] | None:
    if node.op_type == "Conv":
        return constant(node.inputs[2]) if len(node.inputs) > 2 else None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type != "MatMul" or weight is None or weight.shape is None:
        return None
    for follower in fused_behind(node, plan):
        channels = weight.shape[-1]
        value = (
            bias_operand(follower, node.outputs[0], channels) if isinstance(channels, int) else None
        )
        array = constant(value)
        return None if array is None else array.reshape(-1)
    return None

"""Round the constants that planned kernels take in low precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.rtn import CLIP_RATIOS, round_to_nearest
from qcompiler.diagnostics import QcError
from qcompiler.ir.edit import constant, is_constant
from qcompiler.numerics.parallel import on_all_cores
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Plan, Verdict
from qcompiler.schemes import Granularity, QSpec
from qcompiler.stages.cut import Site
from qcompiler.stages.store import StoredWeights, WeightStore
from qcompiler_passes.planned import bias_operand, fused_behind, stored_parameters, tied_tables
from qcompiler_passes.weights.alone import round_alone

__all__ = ["QuantizeWeights", "WeightUse", "planned_weights"]

# A bias is stored as int32 in steps of x_scale * w_scale. The steps must be so large that the
# bias stays below 2^30: half of the range is left to the sum it is added to.
_LARGEST_BIAS = float(2**30)

_DATA_FREE = ("rtn", "k-quant", "hqq", "teq")


@dataclasses.dataclass(frozen=True, slots=True)
class WeightUse:
    """One constant operand of a planned kernel.

    Attributes:
        node: The node that reads it.
        index: Which input it is.
        value: The constant.
        spec: How the kernel takes it.
        algorithm: What rounds it, of weight-only kernels; "" of the others.
    """

    node: ir.Node
    index: int
    value: ir.Value
    spec: QSpec
    algorithm: str = ""


def planned_weights(graph: ir.Graph, plan: Plan) -> Iterator[WeightUse]:
    """Constants that kernels of the plan take in low precision, in graph order.

    Those whose algorithm needs data are left to the passes that have it. A table that a product
    shares is the product's.
    """
    tables = tied_tables(graph, plan)
    for node in graph:
        decision = plan.nodes.get(node.name or "")
        if decision is None or decision.verdict is not Verdict.QUANTIZED:
            continue
        for index, spec in enumerate(decision.inputs):
            value = node.inputs[index] if index < len(node.inputs) else None
            if spec is None or value is None or not is_constant(value):
                continue
            if node.name in tables:
                continue
            table = node.op_type == "Gather" and spec.granularity is Granularity.BLOCK
            alone = node.op_type == "MatMul" and decision.inputs[0] is None
            algorithm = (decision.algorithm or "rtn") if alone or table else ""
            if table and algorithm not in _DATA_FREE:
                algorithm = "hqq"  # nothing reaches a table that data could tell of
            if algorithm in ("", *_DATA_FREE):
                yield WeightUse(node, index, value, spec, algorithm)


@dataclasses.dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round every weight that the plan gives a spec to, by an algorithm that needs no data.

    Weights of kernels that quantize activations as well are rounded to nearest, weight-only ones as
    the plan says.

    A weight shared by several nodes under one spec is rounded once and stays shared. A channel
    whose bias would not fit int32 in steps of ``x_scale * w_scale`` (channels that pruning or a
    folded batch norm left near zero) gets a larger scale.

    Attributes:
        clip: Search clipped ranges for weights of 4 bits and fewer.
        memory: Elements of weight-only constants that are held in memory, a byte each; where there
            are more they go to files.
    """

    name: ClassVar[str] = "quantize-weights"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    clip: bool = True
    memory: int = 1 << 28

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.weights``; the model is untouched."""
        assert state.plan is not None
        uses = list(planned_weights(model.graph, state.plan))
        alone = [use for use in uses if use.algorithm]
        if sum(math.prod(_shape(use.value)) for use in alone) <= self.memory:
            state.weights = self._in_memory(uses, state)
            return PassResult(modified=False)
        held = self._in_memory([use for use in uses if not use.algorithm], state)
        state.weights = self._in_files(alone, held, state)
        return PassResult(modified=False)

    def _in_memory(self, uses: list[WeightUse], state: State) -> dict[Site, QTensor]:
        distinct = list(dict.fromkeys((use.value, use.spec, use.algorithm) for use in uses))
        first = {(use.value, use.spec, use.algorithm): use for use in reversed(uses)}
        tensors = on_all_cores(lambda key: self._round(first[key], None, state), distinct)
        shared = dict(zip(distinct, tensors, strict=True))
        rounded: dict[Site, QTensor] = {}
        for use in uses:
            weight = shared[use.value, use.spec, use.algorithm]
            floor = smallest_scale(use, state)
            if floor is not None and (weight.scale < floor).any():
                weight = self._round(use, floor, state)
            rounded[use.node.name or "", use.index] = weight
        return rounded

    def _in_files(
        self, uses: list[WeightUse], held: Mapping[Site, QTensor], state: State
    ) -> StoredWeights:
        """Round weights of which only a few fit into memory at a time."""
        store = WeightStore()

        def put(use: WeightUse) -> Site:
            site = (use.node.name or "", use.index)
            store.put(site, self.name, self._round(use, None, state))
            return site

        sites = on_all_cores(put, uses)
        return StoredWeights(held, store, dict.fromkeys(sites, self.name))

    def _round(
        self, use: WeightUse, floor: npt.NDArray[np.float32] | None, state: State
    ) -> QTensor:
        array = constant(use.value)
        assert array is not None
        where = f"{use.value.name} of {use.node.name}"
        if use.algorithm:
            return round_alone(
                array, use.spec, use.algorithm, state.recipe, state.form, where=where
            )
        few_bits = use.spec.width <= 4
        return round_to_nearest(
            np.asarray(array, np.float32),
            use.spec,
            where=where,
            clip_ratios=CLIP_RATIOS if self.clip and few_bits else (1.0,),
            smallest_scale=floor,
        )


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None or value.shape is not None, "a constant has a shape"
    shape = value.shape if value.const_value is None else value.const_value.shape
    return tuple(int(size) for size in shape)  # type: ignore[arg-type, union-attr]


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

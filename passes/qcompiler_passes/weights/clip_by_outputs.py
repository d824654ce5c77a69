"""Round weights under ranges clipped so that the error of the outputs is small (AWQ)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.algorithms.awq import clipped
from qcompiler.algorithms.data_free import RtnOptions, rtn
from qcompiler.algorithms.double_quantization import with_quantized_scales
from qcompiler.ir.edit import constant
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.stages.cut import Site
from qcompiler.stages.store import StoredWeights, WeightStore
from qcompiler_passes.weights.staged import staged_layers, weight_spec

__all__ = ["ClipByOutputs"]


@dataclasses.dataclass(frozen=True)
class ClipByOutputs(Pass):
    """Round the layers that the plan gives to AWQ, whose channels are scaled already.

    For each group of a weight several clipped ranges are tried. The one is taken with the least
    error of what the group adds to the outputs, by the second moment of what it reads
    (``state.moments``, filled by ``scale-salient-channels``).
    """

    name: ClassVar[str] = "clip-by-outputs"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Add to ``state.weights``; the model is untouched."""
        assert state.plan is not None
        assert state.weights is not None
        layers = staged_layers(model.graph, state.plan, {"awq"})
        if not layers or state.recipe.awq.rounding != "nearest":
            return PassResult(modified=False)
        store = WeightStore()
        keys: dict[Site, str] = {}
        for node in layers:
            site = (node.name or "", 1)
            keys[site] = ""
            store.put(site, "", self._round(node, state))
        state.weights = StoredWeights(state.weights, store, keys)
        return PassResult(modified=False)

    def _round(self, node: ir.Node, state: State) -> QTensor:
        assert state.plan is not None
        value = node.inputs[0]
        weight = np.asarray(constant(node.inputs[1]), np.float32)
        spec = weight_spec(node, state.plan)
        plain = dataclasses.replace(spec, scales=None)
        blocks = state.moments.get((value.name or "") if value is not None else "")
        if blocks is None or not state.recipe.awq.clip:
            options = RtnOptions(**state.recipe.rtn.model_dump())
            tensor = rtn(weight, plain, options, where=node.name or "")
        else:
            tensor = clipped(weight, blocks, plain)
        if spec.scales is None:
            return tensor
        return with_quantized_scales(tensor, spec.scales, weight)

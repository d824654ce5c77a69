"""Finish the QDQ form: exactly the patterns that the named runtime fuses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import constant, remove_dead
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form
from qcompiler_passes.apply.qdq_writer import QdqWriter
from qcompiler_passes.lower.qdq_sites import Site, operand_of
from qcompiler_passes.planned import KERNEL, bias_operand

__all__ = ["QDQ_SETTINGS", "FinishQdq"]

# What onnxruntime 1.31.1 would otherwise do to a mixed-precision QDQ graph: round the weights of
# float nodes between quantized neighbours (WeightBiasQuantization), use slower kernels for float
# nodes (SkipLayerNormalization, BiasGelu), and give MatMulNBits its slow default arithmetic.
QDQ_SETTINGS = SessionSettings(
    level="all",
    entries={
        "optimization.disable_specified_optimizers": (
            "SkipLayerNormFusion;BiasGeluFusion;WeightBiasQuantization"
        ),
        "session.qdq_matmulnbits_accuracy_level": "4",
    },
)

# MatMul + Add becomes Gemm, and with three dequantized operands QGemm, for these ranks of x.
_GEMM_RANKS = (2, 3)


@dataclasses.dataclass(frozen=True)
class FinishQdq(Pass):
    """Store the bias behind a static MatMul as int32, in steps of ``x_scale * w_scale``.

    ONNX Runtime turns MatMul and the Add behind it into one Gemm, which it runs on integers only
    when the bias is dequantized too; with a float bias the node stays float and its weight is
    dequantized on every run. Other runtimes take the dialect as it is. Works on form ``qdq`` only.
    """

    name: ClassVar[str] = "finish-qdq"
    phase: ClassVar[Phase] = Phase.LOWER
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph and choose the session options."""
        if state.form is not Form.QDQ:
            return PassResult(modified=False)
        if state.target.runtime != "onnxruntime":
            return PassResult(modified=False)
        changed = False
        writer = QdqWriter(model.graph, state)
        for node in list(model.graph):
            if node.metadata_props.get(KERNEL) == "matmul-static":
                changed |= _round_bias(node, writer)
        if changed:
            remove_dead(model)
        state.session = QDQ_SETTINGS
        return PassResult(modified=changed)


def _round_bias(node: ir.Node, writer: QdqWriter) -> bool:
    site = Site.of(node)
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else None
    if not site.absorbed or (rank is not None and rank not in _GEMM_RANKS):
        return False
    add = site.absorbed[0]
    x, w = site.operand(0), site.operand(1)
    x_scale, w_scale = constant(x.scale), constant(w.scale)
    shape = w.q.shape
    channels = shape[-1] if shape is not None else None
    if x_scale is None or w_scale is None or not isinstance(channels, int):
        return False
    bias = bias_operand(add, node.outputs[0], channels)
    array = constant(bias)
    if bias is None or array is None or operand_of(bias) is not None:
        return False
    index = 1 if add.inputs[1] is bias else 0
    scale = np.float32(x_scale) * w_scale.astype(np.float32)
    add.replace_input_with(index, writer.int32_constant(add, index, array, scale))
    return True

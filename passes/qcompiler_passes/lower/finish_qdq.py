"""Finish the QDQ form: exactly the patterns that the named runtime fuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import constant, remove_dead
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.settings import SessionSettings
from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Form
from qcompiler_passes.apply.qdq_writer import QdqWriter
from qcompiler_passes.lower.qdq_sites import Site, operand_of
from qcompiler_passes.planned import KERNEL, SPEC, bias_operand

__all__ = ["FinishQdq"]

# What onnxruntime 1.31.1 would otherwise do to a mixed-precision QDQ graph: round the weights of
# float nodes between quantized neighbours (WeightBiasQuantization), use slower kernels for float
# nodes (SkipLayerNormalization, BiasGelu), and give MatMulNBits its slow default arithmetic.
_DISABLED = ("SkipLayerNormFusion", "BiasGeluFusion", "WeightBiasQuantization")
_ENTRIES = {"session.qdq_matmulnbits_accuracy_level": "4"}

# MatMul + Add becomes Gemm, and with three dequantized operands QGemm, for these ranks of x.
_GEMM_RANKS = (2, 3)

_BLOCKS_SINCE = 21  # opset of DequantizeLinear's block_size and of 4-bit types
_TWO_BITS_SINCE = 25
_FLOAT8_SINCE = 19

# onnxruntime 1.31.1 takes any 8 bits for integers: it fuses Q and DQ of 8-bit floats into operators
# that refuse them, and drops a Relu or Clip in front of a Q whose zero point is 0
_OPTIMIZERS = "optimization.disable_specified_optimizers"
_INTEGER_REWRITES = ("ReluQuantRewrite", "ClipQuantRewrite")


@dataclasses.dataclass(frozen=True)
class FinishQdq(Pass):
    """Store the bias behind a static MatMul as int32, in steps of ``x_scale * w_scale``.

    ONNX Runtime turns MatMul and the Add behind it into one Gemm, which it runs on integers only
    when the bias is dequantized too; with a float bias the node stays float and its weight is
    dequantized on every run. A node quantized at run time must not become a Gemm at all: where
    there is one, that fusion is switched off and biases stay float. Other runtimes take the
    dialect as it is. Works on form ``qdq`` only.

    Given::

        %y = MatMul(%xd, %wd)
        %z = Add(%y, %b)

    Result::

        %y = MatMul(%xd, %wd)
        %bd = DequantizeLinear(%b/q, %b/scale) axis=0
        %z = Add(%y, %bd)
    """

    name: ClassVar[str] = "finish-qdq"
    phase: ClassVar[Phase] = Phase.LOWER
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph and choose the session options."""
        if state.form is not Form.QDQ:
            return PassResult(modified=False)
        diagnostics = tuple(_check_opset(model))
        float8 = _float8_options(model)
        if float8:
            state.session = SessionSettings(level="all", entries=float8)
        if state.target.runtime != "onnxruntime":
            return PassResult(modified=False, diagnostics=diagnostics)
        kernels = {node.name: node.metadata_props.get(KERNEL, "") for node in model.graph}
        dynamic = "matmul-dynamic" in kernels.values()
        disabled = (*_DISABLED, "MatMulAddFusion") if dynamic else _DISABLED
        if float8:
            disabled = (*disabled, *_INTEGER_REWRITES)
        entries = {_OPTIMIZERS: ";".join(disabled), **_ENTRIES}
        entries.update({key: value for key, value in float8.items() if key != _OPTIMIZERS})
        state.session = SessionSettings(level="all", entries=entries)
        changed = False
        if not dynamic:
            writer = QdqWriter(model.graph, state)
            for node in list(model.graph):
                if kernels.get(node.name) == "matmul-static":
                    changed |= _round_bias(node, writer)
        if changed:
            remove_dead(model)
        return PassResult(modified=changed, diagnostics=diagnostics)


def _float8_options(model: ir.Model) -> dict[str, str]:
    """What a session of onnxruntime needs to run 8-bit floats; empty where there are none."""
    specs = (node.metadata_props.get(SPEC) for node in model.graph)
    if not any(spec is not None and QSpec.parse(spec).is_float8 for spec in specs):
        return {}
    return {"session.disable_quant_qdq": "1", _OPTIMIZERS: ";".join(_INTEGER_REWRITES)}


def _check_opset(model: ir.Model) -> Iterator[Diagnostic]:
    """Refuse types and blocks that the opset lacks; tell of 2-bit weights that take a byte each."""
    opset = model.graph.opset_imports.get("", 0)
    wide = []
    for node in model.graph:
        spec = node.metadata_props.get(SPEC)
        if spec is None:
            continue
        parsed = QSpec.parse(spec)
        bits, needs = parsed.dtype.bitwidth, _FLOAT8_SINCE if parsed.is_float8 else 0
        if bits < 8 or "block_size" in node.attributes:
            needs = _BLOCKS_SINCE
        if opset < needs:
            raise QcError(
                Code.NO_LOWERING,
                node.name or "",
                f"weight {spec} needs opset {needs}, the model has {opset}",
                "raise the opset, or use 8-bit weights per channel",
            )
        if bits == 2 and opset < _TWO_BITS_SINCE:
            wide.append(node.name or "")
    if wide:
        yield Diagnostic(
            Code.OPSET_KEPT,
            wide[0],
            f"{len(wide)} 2-bit weights take a byte per element: opset {opset} has no 2-bit types",
            f"opset {_TWO_BITS_SINCE} has, and form 'ort' packs them at any opset",
            {"count": len(wide), "opset": opset},
        )


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

"""Take quantization out of a graph: integers become the floats that they stand for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import add_initializer, constant, replace
from qcompiler.ir.walk import LINEAR, op_name
from qcompiler.targets.schema import Form, Scheme, Target
from qcompiler_passes.quantized.folded_clamps import FoldedClamps
from qcompiler_passes.quantized.stored import Stored, dequantize_of, is_dequantize, is_quantize

__all__ = ["drop_quantization", "float_constant", "strip_float_operators"]


def drop_quantization(graph: ir.Graph) -> bool:
    """Let readers of Q -> DQ read the float before it, and make dequantized constants float.

    What was lost in rounding stays lost: the weights are those of the quantized model. The pairs
    around activations, run-time ones too, are left out, so activations are no longer rounded.
    Clamps that the ranges held are written out.
    """
    changed, clamps = False, FoldedClamps(graph)
    for node in list(graph):
        if not is_dequantize(node):
            continue
        source = node.inputs[0]
        maker = None if source is None else source.producer()
        if source is not None and constant(source) is not None:
            changed |= float_constant(graph, node)
        elif is_quantize(maker) or (maker is not None and maker.op_type == "DynamicQuantizeLinear"):
            assert maker is not None
            value = maker.inputs[0]
            assert value is not None
            if is_quantize(maker):
                value = clamps.unfold(value, maker)
            replace(graph, [node], [], {node.outputs[0]: value})
            changed = True
    return changed


def strip_float_operators(graph: ir.Graph, target: Target, form: Form) -> bool:
    """Let operators without a kernel read floats, where nobody needs them stored before.

    A pair stays where what gives the value has a kernel that stores, and where an operator that
    moves data reads it: what is moved may feed a kernel.
    """
    rows = [row for row in target.kernels if form in row.forms and row.scheme is Scheme.STATIC]
    computing = {row.op for row in rows} | {"Gemm"}
    storing = {row.op for row in rows if row.output is not None}
    moving = {row.op for row in target.carries} | {row.op for row in target.unifies}
    changed, clamps = False, FoldedClamps(graph)
    for node in list(graph):
        source = node.inputs[0] if is_dequantize(node) else None
        maker = None if source is None else source.producer()
        value = maker.inputs[0] if maker is not None and is_quantize(maker) else None
        if value is None:
            continue
        if _is_stored(_behind_clamps(value), storing, moving):
            continue
        for use in list(node.outputs[0].uses()):
            name = op_name(use.node)
            kernel = name in computing and (name not in LINEAR or _has_weight(use.node))
            if not kernel and name not in moving:
                assert maker is not None, "it rounds the value"
                use.node.replace_input_with(use.idx, clamps.unfold(value, maker))
                changed = True
    return changed


def _behind_clamps(value: ir.Value) -> ir.Node | None:
    producer = value.producer()
    while producer is not None and producer.op_type in ("Relu", "Clip"):
        below = producer.inputs[0]
        producer = None if below is None else below.producer()
    return producer


def _is_stored(producer: ir.Node | None, storing: set[str], moving: set[str]) -> bool:
    """Whether a kernel may store the value: its operator has one, and it reads what is stored."""
    if producer is None or not any(map(dequantize_of, producer.inputs)):
        return False
    name = op_name(producer)
    if name in LINEAR:
        return name in storing and _has_weight(producer)
    return name in storing or name in moving


def _has_weight(node: ir.Node) -> bool:
    dq = dequantize_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return dq is not None and constant(dq.inputs[0]) is not None


def float_constant(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace the DQ of a constant by its floats; False when its parameters are not understood."""
    stored = Stored.of(node)
    tensor = None if stored is None else stored.tensor()
    if tensor is None or node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        return False
    value = add_initializer(graph, f"{node.name}/float", np.asarray(tensor.dequantize()))
    replace(graph, [node], [], {node.outputs[0]: value})
    return True

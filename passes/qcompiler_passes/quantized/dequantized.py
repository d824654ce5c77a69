"""Take quantization out of a graph: integers become the floats that they stand for."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.ir.edit import add_initializer, constant, replace
from qcompiler_passes.quantized.stored import Stored, is_dequantize, is_quantize

__all__ = ["drop_quantization", "float_constant"]


def drop_quantization(graph: ir.Graph) -> bool:
    """Let readers of Q -> DQ read the float before it, and make dequantized constants float.

    What was lost in rounding stays lost: the weights are those of the quantized model. The pairs
    around activations, run-time ones too, are left out, so activations are no longer rounded.
    """
    changed = False
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
            replace(graph, [node], [], {node.outputs[0]: value})
            changed = True
    return changed


def float_constant(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace the DQ of a constant by its floats; False when its parameters are not understood."""
    stored = Stored.of(node)
    tensor = None if stored is None else stored.tensor()
    if tensor is None or node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
        return False
    value = add_initializer(graph, f"{node.name}/float", tensor.dequantize())
    replace(graph, [node], [], {node.outputs[0]: value})
    return True

"""Operators that move integers in the QOperator form: dequantized before, quantized behind."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit
from qcompiler_passes.quantized.stored import BYTES, is_quantize

__all__ = ["spell_movers"]

# Order on integers is order on floats, and moving is moving: each gives on dequantized data what
# it gives on integers, dequantized. Pad and Clip are not here: they bring numbers of their own.
_MOVERS = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def spell_movers(graph: ir.Graph) -> bool:
    """Put DQ before and Q behind each mover that reads integers of known parameters.

    The parameters are those of the QuantizeLinear that the integers come from; a table of integers
    takes them from the DequantizeLinear that reads it.
    """
    known: dict[ir.Value, ir.Node] = {}
    changed = False
    for node in list(graph):
        if is_quantize(node):
            if _is_scalar(node):
                known[node.outputs[0]] = node
            continue
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in _MOVERS or node.domain or source is None:
            continue
        if source.dtype not in BYTES:
            continue
        parameters = known.get(source) or _reader(node)
        if parameters is not None and len(node.outputs[0].uses()):
            for output in _surround(graph, node, source, parameters):
                known[output] = parameters
            changed = True
    return changed


def _reader(node: ir.Node) -> ir.Node | None:
    """The DQ behind a mover of a constant, where it is all that reads it."""
    if constant(node.inputs[0]) is None or node.outputs[0].is_graph_output():
        return None
    readers = {use.node for use in node.outputs[0].uses()}
    reader = next(iter(readers), None)
    if len(readers) == 1 and reader is not None and reader.op_type == "DequantizeLinear":
        return reader if _is_scalar(reader) else None
    return None


def _is_scalar(node: ir.Node) -> bool:
    scale = constant(node.inputs[1])
    return scale is not None and scale.size == 1


def _surround(
    graph: ir.Graph, node: ir.Node, source: ir.Value, parameters: ir.Node
) -> list[ir.Value]:
    tape = Tape(graph, node.name or "")
    dq = tape.op("DequantizeLinear", source, *parameters.inputs[1:])
    dq.type, dq.shape = ir.TensorType(ir.DataType.FLOAT), source.shape
    graph.insert_before(node, tape.nodes)
    inherit(tape.nodes, [node])
    node.replace_input_with(0, dq)
    stored = []
    for output in node.outputs:
        if not output.name or output.dtype not in BYTES:
            continue
        behind = Tape(graph, output.name)
        uses = list(output.uses())
        q = behind.op("QuantizeLinear", output, *parameters.inputs[1:])
        q.type, q.shape = output.type, output.shape
        output.type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_after(node, behind.nodes)
        inherit(behind.nodes, [node])
        for use in uses:
            use.node.replace_input_with(use.idx, q)
        if output.is_graph_output():
            name = output.name
            for index, value in enumerate(graph.outputs):
                if value is output:
                    graph.outputs[index] = q
            output.name, q.name = q.name, name
        stored.append(q)
    return stored

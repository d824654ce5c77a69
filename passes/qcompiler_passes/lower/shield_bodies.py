"""Keep the runtime from moving a DequantizeLinear in front of what a body reads."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import outer_uses

__all__ = ["shield_bodies"]

# What onnxruntime 1.31.1 moves Q and DQ through. They move numbers, and make none.
_MOVERS = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def shield_bodies(graph: ir.Graph) -> bool:
    """Put Q and DQ between a data mover of dequantized numbers and the bodies that read it.

    onnxruntime 1.31.1 would put them there itself, takes the body for an ordinary input of its If,
    Loop or Scan, and aborts the process. The numbers are those that the DQ in front gives, so the
    same parameters change none of them.

    Given::

        %d = DequantizeLinear(%q, %s, %z)
        %r = Reshape(%d, %shape)
        %y = If(%c) { ... Neg(%r) ... }

    Result::

        %r = Reshape(%d, %shape)
        %y = If(%c) { ... Neg(DequantizeLinear(QuantizeLinear(%r, %s, %z), %s, %z)) ... }

    Args:
        graph: The main graph, in the QDQ dialect; the new nodes are in it, not in the bodies.

    Returns:
        Whether there was such a value.
    """
    found = [value for value in _read_by_bodies(graph) if _dequantize_of(value) is not None]
    for value in found:
        mover, dequantize = value.producer(), _dequantize_of(value)
        assert mover is not None
        assert dequantize is not None
        scale_and_zero = dequantize.inputs[1:]
        tape = Tape(graph, str(value.name))
        q = tape.op("QuantizeLinear", value, *scale_and_zero)
        shielded = tape.op("DequantizeLinear", q, *scale_and_zero)
        q.shape = shielded.shape = value.shape
        source = dequantize.inputs[0]
        q.type, shielded.type = (source.type if source is not None else None), value.type
        graph.insert_after(mover, tape.nodes)
        inherit(tape.nodes, [mover])
        for use in list(value.uses()):
            if use.node.graph is not graph:
                use.node.replace_input_with(use.idx, shielded)
    return bool(found)


def _read_by_bodies(graph: ir.Graph) -> list[ir.Value]:
    nested = outer_uses(graph)
    return [output for node in graph for output in node.outputs if output in nested]


def _dequantize_of(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear, one scale for all, from which nothing but movers lead to ``value``."""
    node = value.producer()
    moved = False
    while node is not None and node.op_type in _MOVERS and node.domain == "":
        source = node.inputs[0]
        node, moved = (source.producer() if source is not None else None), True
    if node is None or node.op_type != "DequantizeLinear" or not moved:
        return None
    scale = constant(node.inputs[1])
    return node if scale is not None and scale.size == 1 and len(node.inputs) == 3 else None

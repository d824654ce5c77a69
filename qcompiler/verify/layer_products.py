"""Take products apart that a lowering made of several, as query, key and value of a decoder."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant, replace
from qcompiler.ir.provenance import origins

__all__ = ["split_products"]


def split_products(reference: ir.Model, spelled: ir.Model) -> None:
    """Give each MatMul of ``reference`` that ``spelled`` has joined a product of its own again.

    Columns of a product do not depend on each other, so the numbers stay what they are.
    """
    there = {node.name for node in spelled.graph}
    missing = {
        node.name: node
        for node in reference.graph
        if node.op_type == "MatMul" and node.name not in there
    }
    for node in list(spelled.graph):
        parts = [missing[name] for name in origins(node) if name in missing]
        if node.op_type == "MatMul" and len(parts) > 1:
            _split(spelled.graph, node, parts)


def _split(graph: ir.Graph, joined: ir.Node, parts: list[ir.Node]) -> None:
    weights = [constant(part.inputs[1]) for part in parts]
    dequantize = None if joined.inputs[1] is None else joined.inputs[1].producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return
    shapes = [None if weight is None else weight.shape for weight in weights]
    whole = constant(dequantize.inputs[0])
    if whole is None or any(shape is None or len(shape) != 2 for shape in shapes):
        return
    widths = [shape[1] for shape in shapes if shape is not None]
    if sum(widths) != whole.shape[-1]:
        return
    tape = Tape(graph, str(joined.name))
    attributes = {name: attr.value for name, attr in dequantize.attributes.items()}
    products, end = [], 0
    for part, width in zip(parts, widths, strict=True):
        columns, end = slice(end, end + width), end + width
        operands = [_columns(graph, value, columns, sum(widths)) for value in dequantize.inputs]
        weight = tape.op("DequantizeLinear", *operands, **attributes)
        products.append(tape.op("MatMul", joined.inputs[0], weight, name=part.name))
    replace(
        graph,
        [joined],
        tape.nodes,
        {joined.outputs[0]: tape.op("Concat", *products, axis=-1)},
    )


def _columns(
    graph: ir.Graph, value: ir.Value | None, columns: slice, width: int
) -> ir.Value | None:
    """Some columns of a constant that has ``width``; what has fewer holds for all of them."""
    array = constant(value)
    if value is None or array is None or array.ndim == 0 or array.shape[-1] != width:
        return value
    part = np.ascontiguousarray(array[..., columns])
    name = f"{value.name}/{columns.start}"
    return add_initializer(
        graph, name, part if value.dtype is None else ir.Tensor(part, value.dtype)
    )

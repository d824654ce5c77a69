"""Iterate over a model: its main graph, the bodies of If and Loop, and model-local functions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

__all__ = [
    "LINEAR",
    "all_graphs",
    "all_nodes",
    "body_graphs",
    "captured",
    "custom_operators",
    "op_name",
    "outer_uses",
]

LINEAR = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
"""Operators that multiply data by a matrix or a kernel."""

_STANDARD = ("", "ai.onnx")
_KNOWN = frozenset({*_STANDARD, "ai.onnx.ml", "com.microsoft"})  # what onnxruntime has built in


def op_name(node: ir.Node | onnx.NodeProto) -> str:
    """``MatMul`` for the standard domain, ``com.microsoft:Gelu`` for others."""
    return node.op_type if node.domain in _STANDARD else f"{node.domain}:{node.op_type}"


def body_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds as attributes (If branches, Loop and Scan bodies)."""
    for attr in node.attributes.values():
        if attr.type is ir.AttributeType.GRAPH:
            yield attr.as_graph()
        elif attr.type is ir.AttributeType.GRAPHS:
            yield from attr.as_graphs()


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every nested body, outer before inner; functions are not entered."""
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph:
            stack.extend(body_graphs(node))


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph."""
    for graph in all_graphs(model):
        yield from graph


def custom_operators(model: ir.Model) -> list[str]:
    """Operators of domains that neither the standard nor ONNX Runtime brings, in graph order."""
    return list(dict.fromkeys(op_name(n) for n in all_nodes(model) if n.domain not in _KNOWN))


def outer_uses(graph: ir.Graph) -> set[ir.Value]:
    """Values of ``graph`` that are read by a nested body of one of its nodes."""
    return {value for node in graph for value in captured(node) if _graph_of(value) is graph}


def captured(node: ir.Node) -> set[ir.Value]:
    """Values that the bodies of a node read, their own among them."""
    used: set[ir.Value] = set()
    stack = list(body_graphs(node))
    while stack:
        body = stack.pop()
        for node in body:
            used.update(value for value in node.inputs if value is not None)
            stack.extend(body_graphs(node))
        used.update(body.outputs)
    return used


def _graph_of(value: ir.Value) -> object:
    producer = value.producer()
    return producer.graph if producer is not None else value.graph

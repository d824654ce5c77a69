"""What a legal graph is, as a table of checks; run after every pass in check mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from qcompiler.ir.walk import body_graphs, op_name

__all__ = ["violations"]


def violations(model: ir.Model) -> list[str]:
    """One sentence for each broken law; an empty list for a legal model."""
    found = [sentence for check in _CHECKS for sentence in check(model)]
    found.extend(_scoping(model.graph, set()))
    return found


def _opsets(model: ir.Model) -> Iterator[str]:
    stack = [model.graph]
    imported = set(model.opset_imports) | {"", "ai.onnx"}
    while stack:
        for node in stack.pop():
            if node.domain not in imported:
                yield f"{node.name}: domain {node.domain!r} of {op_name(node)} is not imported"
            stack.extend(body_graphs(node))


def _unique_names(model: ir.Model) -> Iterator[str]:
    nodes: set[str] = set()
    values: set[str] = set()
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        for value in [*graph.inputs, *graph.initializers.values()]:
            if value.name in values and not (value.is_graph_input() and value.is_initializer()):
                yield f"value name {value.name!r} is used twice"
            values.add(value.name or "")
        for node in graph:
            if not node.name or node.name in nodes:
                yield f"node name {node.name!r} is empty or used twice"
            nodes.add(node.name or "")
            for output in node.outputs:
                if output.name and output.name in values:
                    yield f"value name {output.name!r} is used twice"
                values.add(output.name or "")
            stack.extend(body_graphs(node))


def _outputs(model: ir.Model) -> Iterator[str]:
    for value in model.graph.outputs:
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            yield f"graph output {value.name!r} is not produced"


_CHECKS: tuple[Callable[[ir.Model], Iterator[str]], ...] = (_opsets, _unique_names, _outputs)


def _scoping(graph: ir.Graph, outer: set[ir.Value]) -> Iterator[str]:
    known = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                yield f"{node.name}: input %{value.name} is not produced before it is read"
        for body in body_graphs(node):
            yield from _scoping(body, known)
        known |= set(node.outputs)

"""Layers in the branches of an If, where prompts and single tokens have paths of their own."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.ir.walk import op_name

__all__ = ["take_decode"]

_PATHS = ("prefill", "decode")  # names of the branches that the pass add-prefill makes


def take_decode(graph: ir.Graph) -> bool:
    """Put the path of single tokens in place of the choice between the two; whether there was one.

    Its nodes have the names of the float model's, the other's are copies.
    """
    choice = next((node for node in graph if _paths(node) == _PATHS), None)
    if choice is None:
        return False
    path = choice.attributes["else_branch"].as_graph()
    nodes, given = list(path), list(path.outputs)
    path.outputs.clear()
    path.remove(nodes)
    graph.insert_before(choice, nodes)
    for old, new in zip(choice.outputs, given, strict=True):
        new.name = old.name
    ir.convenience.replace_all_uses_with(choice.outputs, given, replace_graph_outputs=True)
    graph.remove(choice)
    return True


def _paths(node: ir.Node) -> tuple[str | None, ...]:
    if op_name(node) != "If":
        return ()
    names = ("then_branch", "else_branch")
    return tuple(node.attributes[name].as_graph().name for name in names)

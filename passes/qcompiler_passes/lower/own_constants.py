"""Constants that the bodies of an If have for themselves once the runtime has loaded the model."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qcompiler.ir.edit import Tape

__all__ = ["own_constants"]


def own_constants(graph: ir.Graph, branches: Iterable[ir.Graph]) -> None:
    """Let branches read copies of the constants of ``graph``, which folding makes at load time.

    What a branch reads from outside is handed to it at each step, value by value, and what is
    outside is looked at each step: for hundreds of weights a tenth of a token's time. The file
    holds each constant once. Weights of int8 products that are filed stay outside, since copies
    of them would cost more memory than they save time.

    Args:
        graph: Has the If of which the branches are.
        branches: Changed in place; what they read becomes Identity nodes of their own.
    """
    constants = _constants(graph)
    for branch in branches:
        tape = Tape(graph, str(branch.name))
        copies: dict[ir.Value, ir.Value] = {}
        for node in branch:
            for index, value in enumerate(node.inputs):
                if value is None or value not in constants:
                    continue
                if node.op_type == "MatMulIntegerToFloat" and index == 1:
                    continue
                if value not in copies:
                    copies[value] = tape.op("Identity", value, name=f"{branch.name}/{value.name}")
                    copies[value].type, copies[value].shape = value.type, value.shape
                node.replace_input_with(index, copies[value])
        branch.insert_before(branch[0], tape.nodes)


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """What is constant once the model is loaded: initializers, and what nodes make of them."""
    found = {value for value in graph.initializers.values() if not value.is_graph_input()}
    for node in graph:
        if node.inputs and all(value in found for value in node.inputs if value is not None):
            found.update(node.outputs)
    return found

"""Divide a whole graph at its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from qcompiler.analysis.blocks import Block
from qcompiler.ir.walk import op_name
from qcompiler.stages.cut import Stage, reads, stages_of

__all__ = ["finals", "spans"]


def spans(
    graph: ir.Graph, blocks: Sequence[Block], *, front: Iterable[ir.Node] = ()
) -> list[Stage]:
    """A stage before the first block, one that ends with each, and one for the end of the graph.

    A node between blocks runs in the stage of the block before it.

    Args:
        graph: Nodes in topological order.
        blocks: See :func:`~qcompiler.analysis.blocks.repeated_blocks`.
        front: Nodes that run in stage 0 whatever block they are in, with all that leads up to them.
    """
    end = len(blocks) + 1
    nodes = [node for node in graph if op_name(node) != "Constant"]
    home = {node: index for index, block in enumerate(blocks, 1) for node in block.nodes}
    first = _with_what_leads_up(nodes, front)
    needed = _with_what_leads_up(nodes, [*first, *home])
    made: dict[ir.Value, int] = {}
    runs: dict[ir.Node, int] = {}
    for node in nodes:
        before = max((made.get(value, 0) for value in reads(node)), default=0)
        runs[node] = 0 if node in first else max(before, home.get(node, 0))
        made.update(dict.fromkeys(node.outputs, runs[node]))
    runs = {node: index if node in needed else end for node, index in runs.items()}
    return stages_of(graph, runs, end + 1)


def _with_what_leads_up(nodes: Sequence[ir.Node], ends: Iterable[ir.Node]) -> set[ir.Node]:
    found = set(ends)
    for node in reversed(nodes):
        if node in found:
            found.update(made for value in reads(node) if (made := value.producer()) is not None)
    return found


def finals(stage: Stage) -> tuple[ir.Value, ...]:
    """The graph's outputs that the stage makes, sequences and optionals left out."""
    ends = [out for node in stage.nodes for out in node.outputs if out.is_graph_output()]
    return tuple(v for v in ends if not isinstance(v.type, ir.SequenceType | ir.OptionalType))

"""Repeated blocks of a model: the layers of a transformer, the stages of an image network.

Where the model came from torch, module paths name them: ``encoder.layer.0``, ``encoder.layer.1``.
Else they are found in the graph. Every path from a node to the output runs through that node's
post-dominators, so the longest chain of them is the model's spine, whatever masks and positions
join from the side. The spine cuts the graph into pieces; each is written in a canonical form, and
the longest repetition of forms gives the blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import networkx as nx
import onnx_ir as ir

from qcompiler.ir.provenance import module_of
from qcompiler.ir.walk import op_name

__all__ = ["Block", "repeated_blocks"]

_INDEXED = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
_END = "end"


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One of the repeated parts.

    Attributes:
        name: The module path, or ``block.0``, ``block.1`` ...
        nodes: In graph order, with side computations that only this block reads.
    """

    name: str
    nodes: tuple[ir.Node, ...]


def repeated_blocks(graph: ir.Graph) -> tuple[Block, ...]:
    """The blocks in graph order; none when nothing is repeated. Bodies are not entered."""
    blocks = _by_module(graph)
    free = {node for node in graph if not module_of(node)}
    if not blocks:
        stem, pieces = _pieces(graph)
        blocks = _by_repetition(pieces)
        free = set(graph).difference(stem, *pieces)
    whole = _with_side_computations(graph, blocks, free)
    return tuple(Block(name, nodes) for name, nodes in whole.items())


def _by_module(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Blocks of the indexed module list that holds most nodes; of equals the outermost."""
    lists: dict[str, dict[str, list[ir.Node]]] = {}
    for node in graph:
        path = module_of(node)
        for found in _INDEXED.finditer(path):
            members = lists.setdefault(path[: found.start()], {})
            members.setdefault(path[: found.end()], []).append(node)
    several = {prefix: members for prefix, members in lists.items() if len(members) > 1}
    if not several:
        return {}
    best = max(several, key=lambda prefix: (sum(map(len, several[prefix].values())), -len(prefix)))
    return several[best]


def _by_repetition(pieces: Sequence[list[ir.Node]]) -> dict[str, list[ir.Node]]:
    start, period, count, _ = _repetition([_canonical(piece) for piece in pieces])
    return {
        f"block.{index}": [
            node
            for piece in pieces[start + index * period : start + (index + 1) * period]
            for node in piece
        ]
        for index in range(count)
    }


def _pieces(graph: ir.Graph) -> tuple[set[ir.Node], list[list[ir.Node]]]:
    """The spine's pieces: what lies between consecutive nodes of it, the later one included.

    Before them comes what leads up to the spine.

    The longest chain of post-dominators may begin inside the first block, on a branch of it; then
    one of that node's ancestors begins a chain whose repetition covers more.
    """
    order = {node: index for index, node in enumerate(graph)}
    view, after = _post_dominators(graph, order)
    if not after:
        return set(), []
    depth = {_END: 0}
    for node in sorted(after, key=lambda node: -order[node]):
        depth[node] = depth[after[node]] + 1
    deepest = max(after, key=lambda node: (depth[node], -order[node]))
    starts = [deepest, *sorted(nx.ancestors(view, deepest) & after.keys(), key=order.__getitem__)]
    found = []
    for start in starts:
        if depth[start] > depth[deepest] // 2:
            pieces = _cut(view, _chain(after, start), order)
            _, _, _, covered = _repetition([_canonical(piece) for piece in pieces])
            found.append((covered, start, pieces))
    _, start, pieces = max(found, key=lambda item: item[0])
    return {start, *nx.ancestors(view, start)}, pieces


def _post_dominators(
    graph: ir.Graph, order: dict[ir.Node, int]
) -> tuple[nx.DiGraph[Any], dict[Any, Any]]:
    """Producers to consumers, and for each node that leads to an output its next post-dominator."""
    view: nx.DiGraph[Any] = nx.DiGraph()
    view.add_node(_END)
    for node in graph:
        view.add_edges_from((node, reader) for reader in _consumers(node) if reader in order)
        if any(output.is_graph_output() for output in node.outputs):
            view.add_edge(node, _END)
    after = nx.immediate_dominators(view.reverse(copy=False), _END)
    return view, {node: parent for node, parent in after.items() if node != _END}


def _chain(after: dict[Any, Any], start: ir.Node) -> list[ir.Node]:
    chain = [start]
    while (node := after[chain[-1]]) != _END:
        chain.append(node)
    return chain


def _cut(
    view: nx.DiGraph[Any], chain: Sequence[ir.Node], order: dict[ir.Node, int]
) -> list[list[ir.Node]]:
    pieces = []
    for before, after in itertools.pairwise(chain):
        between, stack = {after}, list(view.successors(before))
        while stack:
            node = stack.pop()
            if node not in between:
                between.add(node)
                stack.extend(view.successors(node))
        pieces.append(sorted(between, key=order.__getitem__))
    return pieces


def _canonical(nodes: Sequence[ir.Node]) -> tuple[object, ...]:
    """Operators, attributes and operands, with no names in it."""
    numbers = {output: index for index, output in enumerate(o for n in nodes for o in n.outputs)}
    lines: list[object] = []
    for node in nodes:
        attributes = sorted(f"{name}={attr}" for name, attr in node.attributes.items())
        operands: list[object] = []
        for value in node.inputs:
            if value is None or value in numbers:
                operands.append(None if value is None else numbers[value])
            elif value.const_value is not None:
                constant = value.const_value
                operands.append((str(constant.dtype), tuple(constant.shape)))
            else:
                operands.append("outside")
        lines.append((op_name(node), tuple(attributes), tuple(operands)))
    return tuple(lines)


def _repetition(forms: Sequence[tuple[object, ...]]) -> tuple[int, int, int, int]:
    """Start, period, count and nodes of the run of equal periods that covers most nodes.

    A run needs two periods of at least two nodes. Of runs that cover the same, the shortest
    period wins, then the first.
    """
    numbers = {form: index for index, form in enumerate(dict.fromkeys(forms))}
    ids, best, covered = [numbers[form] for form in forms], (0, 1, 0), 0
    for period in range(1, len(ids) // 2 + 1):
        run = 0  # how many positions in a row equal the one a period before
        for end in range(period, len(ids)):
            run = run + 1 if ids[end] == ids[end - period] else 0
            count = run // period + 1
            if count < 2:
                continue
            start = end + 1 - count * period
            nodes = sum(map(len, forms[start : start + count * period]))
            if nodes > covered and nodes >= 2 * count:
                best, covered = (start, period, count), nodes
    return (*best, covered if best[2] else 0)


def _with_side_computations(
    graph: ir.Graph, blocks: dict[str, list[ir.Node]], free: set[ir.Node]
) -> dict[str, tuple[ir.Node, ...]]:
    """Add to each block those of the ``free`` nodes whose results only it reads."""
    owner = {node: name for name, nodes in blocks.items() for node in nodes}
    order = list(graph)
    for node in reversed(order):
        if node not in free or node in owner or any(o.is_graph_output() for o in node.outputs):
            continue
        readers = {owner.get(consumer) for consumer in _consumers(node)}
        if len(readers) == 1 and (name := readers.pop()) is not None:
            owner[node] = name
    found: dict[str, list[ir.Node]] = {name: [] for name in blocks}
    for node in order:
        if node in owner:
            found[owner[node]].append(node)
    return {name: tuple(nodes) for name, nodes in found.items()}


def _consumers(node: ir.Node) -> Iterable[ir.Node]:
    return (use.node for output in node.outputs for use in output.uses())

"""Divide a graph at the inputs of the layers to round."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from qcompiler.ir.edit import is_constant
from qcompiler.ir.walk import captured

__all__ = [
    "Constants",
    "LayerGroup",
    "Site",
    "Stage",
    "constants_of",
    "cut",
    "groups_of",
    "reads",
    "stages_of",
]

Site = tuple[str, int]
"""Name of a node, and which of its inputs is a weight."""


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Layers that read one activation: they are rounded together, and share its statistics.

    Attributes:
        value: The activation, ``[..., K]``.
        nodes: The layers, in graph order; input 1 of each is its weight.
    """

    value: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the weights are."""
        return tuple((node.name or "", 1) for node in self.nodes)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the graph that is run at once.

    Attributes:
        nodes: In graph order. Layers among them belong to groups of stages before.
        inputs: Values from before that the nodes read.
        outputs: Values that later stages read, or that groups of this stage do.
        groups: Groups whose activations are there after this stage (or were before).
        last: Values that no later stage reads.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    groups: tuple[LayerGroup, ...]
    last: tuple[ir.Value, ...]


def groups_of(nodes: Iterable[ir.Node]) -> list[LayerGroup]:
    """Layers by the activation they read, in the order of the first of each."""
    by_value: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        value = node.inputs[0]
        assert value is not None
        by_value.setdefault(value, []).append(node)
    return [LayerGroup(value, tuple(found)) for value, found in by_value.items()]


def cut(graph: ir.Graph, groups: Sequence[LayerGroup]) -> list[Stage]:
    """Stages such that a layer runs in a later one than that which gives its activation.

    A group belongs to the stage of its *depth*: the number of groups on the longest path before
    it. A node runs in the last stage that still serves all its readers, so that little crosses;
    what no group needs (the end of the graph) runs in none.

    Args:
        graph: Nodes in topological order.
        groups: See :func:`groups_of`.
    """
    layer = {node: group for group in groups for node in group.nodes}
    depth: dict[ir.Value, int] = {}
    for node in graph:
        before = max((depth.get(value, 0) for value in reads(node)), default=0)
        for output in node.outputs:
            depth[output] = before + (node in layer)
    wanted: dict[ir.Value, int] = {}
    for group in groups:
        wanted[group.value] = depth.get(group.value, 0)
    runs: dict[ir.Node, int] = {}
    for node in reversed(list(graph)):
        needed = [wanted[output] for output in node.outputs if output in wanted]
        if not needed or _is_constant(node):
            continue
        runs[node] = min(needed)
        for value in reads(node):
            wanted[value] = min(wanted.get(value, runs[node]), runs[node])
    by_depth: dict[int, list[LayerGroup]] = {}
    for group in groups:
        by_depth.setdefault(depth.get(group.value, 0), []).append(group)
    return stages_of(graph, runs, max(by_depth, default=-1) + 1, by_depth)


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads of its graph, its bodies included; constants are not among it."""
    return [value for value in dict.fromkeys(_all_reads(node)) if not is_constant(value)]


@dataclasses.dataclass(frozen=True)
class Constants:
    """What nodes read that is fixed: each stage has it for itself.

    Attributes:
        nodes: Constant nodes.
        initializers: Initializers of the graph.
    """

    nodes: tuple[ir.Node, ...]
    initializers: tuple[ir.Value, ...]


def constants_of(nodes: Iterable[ir.Node]) -> Constants:
    """The constants that the nodes read, their bodies included."""
    values = dict.fromkeys(v for node in nodes for v in _all_reads(node) if is_constant(v))
    made = dict.fromkeys(p for p in (value.producer() for value in values) if p is not None)
    return Constants(tuple(made), tuple(v for v in values if v.producer() is None))


def _all_reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    own = node.graph
    yield from (value for value in captured(node) if _home(value) is own)


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _home(value: ir.Value) -> object:
    producer = value.producer()
    return value.graph if producer is None else producer.graph


def stages_of(
    graph: ir.Graph,
    runs: Mapping[ir.Node, int],
    count: int,
    groups: Mapping[int, Sequence[LayerGroup]] = MappingProxyType({}),
) -> list[Stage]:
    """Stages, given where each node runs.

    Args:
        graph: Nodes in topological order.
        runs: Stage of each node that shall run; none reads what a later one makes.
        count: How many stages there are.
        groups: By the stage after which their activations are there.
    """
    nodes: list[list[ir.Node]] = [[] for _ in range(count)]
    made: dict[ir.Value, int] = dict.fromkeys(graph.inputs, -1)
    read: dict[ir.Value, set[int]] = {}
    for node in graph:
        if node not in runs:
            continue
        nodes[runs[node]].append(node)
        made.update(dict.fromkeys(node.outputs, runs[node]))
        for value in reads(node):
            read.setdefault(value, set()).add(runs[node])
    seen = {group.value: index for index, found in groups.items() for group in found}
    final = {
        value: max([*read.get(value, ()), seen.get(value, -1)]) for value in {*read, *seen}
    }  # fmt: skip
    stages = []
    for index in range(count):
        inputs = [v for v, at in read.items() if index in at and made[v] < index]
        outputs = [
            output
            for node in nodes[index]
            for output in node.outputs
            if output in final and (final[output] > index or seen.get(output) == index)
        ]
        last = [value for value, end in final.items() if end == index]
        stages.append(
            Stage(
                tuple(nodes[index]),
                tuple(inputs),
                tuple(outputs),
                tuple(groups.get(index, ())),
                tuple(last),
            )
        )
    return stages

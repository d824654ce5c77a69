"""Remove nodes that give back what they get."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant, remove_dead, replace
from qcompiler.ir.walk import all_graphs
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["RemoveNoOps"]

Question = Callable[[ir.Node], "ir.Value | None"]


@dataclasses.dataclass(frozen=True)
class RemoveNoOps(Pass):
    """Route around nodes whose output is their input, and merge Transpose and Reshape chains.

    Enters If and Loop bodies. A node whose output is a graph output goes only when its input's
    producer can take over the name.

    Given:  ``%a = Cast(%x) to=FLOAT;  %b = Transpose(%a) perm=[1, 0];
    %y = Transpose(%b) perm=[1, 0]`` with ``%x: float``
    Result: ``%y`` is ``%x``
    """

    name: ClassVar[str] = "remove-no-ops"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """One walk per graph in its order, again while something changed."""
        modified = False
        while any(_walk(graph) for graph in all_graphs(model)):
            modified = True
            remove_dead(model)  # what was routed around hides that others have one reader
        return PassResult(modified)


def _walk(graph: ir.Graph) -> bool:
    changed = False
    for node in list(graph):
        if node.domain or node.graph is None:
            continue
        question = _NO_OPS.get(node.op_type)
        value = question(node) if question else None
        if value is not None and _may_replace(graph, node.outputs[0], value):
            replace(graph, [node], [], {node.outputs[0]: value})
            changed = True
        elif node.op_type in _MERGES and _MERGES[node.op_type](graph, node):
            changed = True
    return changed


def _may_replace(graph: ir.Graph, output: ir.Value, value: ir.Value) -> bool:
    """Whether ``value`` can stand for ``output`` without a new Identity."""
    if not output.is_graph_output():
        return True
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()


def _static(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return value.shape.numpy()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _ints(node: ir.Node, index: int) -> list[int] | None:
    array = constant(_input(node, index))
    return None if array is None else [int(x) for x in array.ravel()]


def _identity(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _cast(node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    same = x is not None and x.dtype is not None and x.dtype == node.attributes["to"].as_int()
    return x if same else None


def _reshape(node: ir.Node) -> ir.Value | None:
    x, target, before = node.inputs[0], _ints(node, 1), _static(node.inputs[0])
    if target is None or len(target) != _rank(x):
        return None
    zero = node.attributes.get("allowzero")
    keeps = zero is None or zero.as_int() == 0
    if keeps and all(dim == 0 for dim in target[:-1]) and target and target[-1] in (0, -1):
        return x
    if before is None:
        return None
    same = [
        want == have or (want == 0 and keeps) for want, have in zip(target, before, strict=True)
    ]
    free = [i for i, want in enumerate(target) if want == -1]
    others = all(ok for i, ok in enumerate(same) if i not in free)
    return x if others and len(free) <= 1 and 0 not in before else None


def _flatten(node: ir.Node) -> ir.Value | None:
    axis = node.attributes.get("axis")
    return (
        node.inputs[0]
        if _rank(node.inputs[0]) == 2 and (axis is None or axis.as_int() in (1, -1))
        else None
    )


def _transpose(node: ir.Node) -> ir.Value | None:
    perm = _perm(node)
    if perm is None:
        return None
    if perm == list(range(len(perm))):
        return node.inputs[0]
    inner = _standard_producer(node.inputs[0], "Transpose")
    before = _perm(inner) if inner else None
    if inner is None or before is None or [before[i] for i in perm] != list(range(len(perm))):
        return None
    return inner.inputs[0]


def _perm(node: ir.Node) -> list[int] | None:
    attr = node.attributes.get("perm")
    if attr is not None:
        return list(attr.as_ints())
    rank = _rank(node.inputs[0])
    return None if rank is None else list(range(rank))[::-1]


def _dropout(node: ir.Node) -> ir.Value | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    mode = _input(node, 2)
    flag = constant(mode)
    return node.inputs[0] if mode is None or (flag is not None and not flag.any()) else None


def _expand(node: ir.Node) -> ir.Value | None:
    x, target, rank = node.inputs[0], _ints(node, 1), _rank(node.inputs[0])
    if target is None or rank is None or len(target) > rank:
        return None
    have = list(x.shape or ())[rank - len(target) :] if x is not None else []
    return x if all(w in (1, h) for w, h in zip(target, have, strict=True)) else None


def _slice(node: ir.Node) -> ir.Value | None:
    x, starts, ends = node.inputs[0], _ints(node, 1), _ints(node, 2)
    steps = _ints(node, 4) if _input(node, 4) is not None else []
    if x is None or starts is None or ends is None or steps is None:
        return None
    if any(starts) or any(step != 1 for step in steps):
        return None
    axes = _ints(node, 3) if _input(node, 3) is not None else list(range(len(starts)))
    if axes is None:
        return None
    return x if all(_reaches(x, axis, end) for axis, end in zip(axes, ends, strict=True)) else None


def _reaches(x: ir.Value, axis: int, end: int) -> bool:
    if end >= np.iinfo(np.int32).max:  # exporters write INT32_MAX or INT64_MAX for "to the end"
        return True
    dim = x.shape[axis] if x.shape is not None and -len(x.shape) <= axis < len(x.shape) else None
    return isinstance(dim, int) and end >= dim


def _pad(node: ir.Node) -> ir.Value | None:
    pads = _ints(node, 1)
    return node.inputs[0] if pads is not None and not any(pads) else None


def _axes_of(node: ir.Node) -> list[int] | None:
    return _ints(node, 1) if _input(node, 1) is not None else None


def _squeeze(node: ir.Node) -> ir.Value | None:
    return _undone(node, "Unsqueeze")


def _unsqueeze(node: ir.Node) -> ir.Value | None:
    return _undone(node, "Squeeze")


def _undone(node: ir.Node, inverse: str) -> ir.Value | None:
    inner = _standard_producer(node.inputs[0], inverse)
    axes = _axes_of(node)
    if inner is None or axes is None or min(axes) < 0 or axes != _axes_of(inner):
        return None
    return inner.inputs[0]


def _neutral(element: float) -> Question:
    """``x op c`` where c is the neutral element and does not broadcast x to another shape."""

    def question(node: ir.Node) -> ir.Value | None:
        sides = [(0, 1), (1, 0)] if node.op_type in ("Add", "Mul", "And", "Or") else [(0, 1)]
        for index, other in sides:
            x, array = _input(node, index), constant(_input(node, other))
            if x is not None and array is not None and _is_neutral(array, element, _rank(x)):
                return x
        return None

    return question


def _is_neutral(array: npt.NDArray[np.generic], element: float, rank: int | None) -> bool:
    fits = array.ndim == 0 or (rank is not None and array.ndim <= rank)
    return array.size == 1 and fits and bool((array == element).all())


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _clip(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if all(value is None for value in node.inputs[1:]) else None


def _standard_producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != op_type or producer.domain:
        return None
    return producer


def _merge_transposes(graph: ir.Graph, node: ir.Node) -> bool:
    inner = _standard_producer(node.inputs[0], "Transpose")
    if inner is None or inner.graph is not graph or not _only_reader(inner.outputs[0]):
        return False
    perm, before = _perm(node), _perm(inner)
    if perm is None or before is None:
        return False
    tape = Tape(graph, node.name or "Transpose")
    y = tape.op("Transpose", inner.inputs[0], perm=[before[i] for i in perm])
    replace(graph, [inner, node], tape.nodes, {node.outputs[0]: y})
    return True


def _merge_reshapes(graph: ir.Graph, node: ir.Node) -> bool:
    inner = _standard_producer(node.inputs[0], "Reshape")
    target = _ints(node, 1)
    if inner is None or inner.graph is not graph or target is None or 0 in target:
        return False
    if not _only_reader(inner.outputs[0]):
        return False
    tape = Tape(graph, node.name or "Reshape")
    y = tape.op("Reshape", inner.inputs[0], node.inputs[1])
    replace(graph, [inner, node], tape.nodes, {node.outputs[0]: y})
    return True


def _only_reader(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


# Operator -> the value its first output equals, or None.
_NO_OPS: Mapping[str, Question] = {
    "Add": _neutral(0),
    "And": _neutral(1),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _single,
    "Div": _neutral(1),
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Identity": _identity,
    "Max": _single,
    "Mean": _single,
    "Min": _single,
    "Mul": _neutral(1),
    "Or": _neutral(0),
    "Pad": _pad,
    "Pow": _neutral(1),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _neutral(0),
    "Sum": _single,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
_MERGES: Mapping[str, Callable[[ir.Graph, ir.Node], bool]] = {
    "Reshape": _merge_reshapes,
    "Transpose": _merge_transposes,
}

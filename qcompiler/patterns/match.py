"""How a pattern is matched backwards from a node. Matching backtracks: every way is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.ir.walk import op_name
from qcompiler.patterns.terms import Call, Maybe, Number, OneOf, Term, Var

__all__ = ["Match", "Matcher", "scalar_of"]

_COMMUTATIVE = frozenset({"Add", "And", "Equal", "Max", "Min", "Mul", "Or", "Xor"})
_NUMBER_RTOL = 1e-5  # exporters print constants with five digits or more: 1.4142 for sqrt(2)


def scalar_of(value: ir.Value | None) -> float | None:
    """The number in a constant of shape [] or [1], else None; large constants are not read."""
    if value is None or (value.const_value is not None and value.const_value.size != 1):
        return None
    array = constant(value)
    # more axes than one could raise the rank of what the number is combined with
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(-1)[0])


@dataclasses.dataclass(frozen=True)
class Match:
    """One way in which a pattern matches.

    Attributes:
        root: The node at which it matches.
        values: Value by variable or capture name; absent optional inputs are not in it.
        captured: Node by capture name.
        inner: Matched nodes that only the match reads, producers first, ``root`` last.
    """

    root: ir.Node
    values: Mapping[str, ir.Value]
    captured: Mapping[str, ir.Node]
    inner: tuple[ir.Node, ...]

    def __getitem__(self, name: str) -> ir.Value:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> ir.Value | None:
        """The value, or None when the optional term was not there."""
        return self.values.get(name)

    def node(self, name: str) -> ir.Node:
        """The node captured under ``name``."""
        return self.captured[name]

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """The constant bound to ``name``, or None."""
        return constant(self.values.get(name))

    def scalar(self, name: str) -> float | None:
        """The number bound to ``name``, or None when it is no constant with one element."""
        return scalar_of(self.values.get(name))


@dataclasses.dataclass(frozen=True)
class _State:
    """What is bound so far; replaced, never changed, so that backtracking is free."""

    terms: Mapping[Call | Var, ir.Value]
    nodes: tuple[tuple[ir.Node, Call], ...]

    def bind(self, term: Call | Var, value: ir.Value) -> _State:
        return _State({**self.terms, term: value}, self.nodes)


class Matcher:
    """Matches one pattern at nodes of one graph, and remembers how far it came."""

    def __init__(self, pattern: Term) -> None:
        """Match ``pattern``; ``depth`` and ``reason`` describe the deepest failure since."""
        self.pattern = pattern
        self.depth = 0
        self.reason = ""

    def matches(self, node: ir.Node) -> Iterator[Match]:
        """Every way in which the pattern matches at ``node``, without leaks."""
        self.depth, self.reason = 0, ""
        for state in self._term(self.pattern, node.outputs[0], _State({}, ())):
            found = self._finish(node, state)
            if found is not None:
                yield found

    def miss(self, depth: int, reason: str) -> None:
        """Record a failure behind ``depth`` matched nodes, if it is the deepest."""
        if depth > self.depth:
            self.depth, self.reason = depth, reason

    def _term(self, term: Term, value: ir.Value | None, state: _State) -> Iterator[_State]:
        if isinstance(term, OneOf):
            for item in term.terms:
                yield from self._term(item, value, state)
        elif isinstance(term, Maybe) and value is not None:
            yield from self._term(term.term, value, state)
        elif value is None:
            if term is None or isinstance(term, Maybe):
                yield state
            else:
                self.miss(len(state.nodes), "an input is missing")
        elif isinstance(term, Call) and term not in state.terms:
            yield from self._call(term, value, state)
        else:
            reason = _refused(term, value, state)
            if reason is not None:
                self.miss(len(state.nodes), f"%{value.name} {reason}")
            else:
                yield state.bind(term, value) if isinstance(term, Var) else state

    def _call(self, term: Call, value: ir.Value, state: _State) -> Iterator[_State]:
        node = value.producer()
        depth = len(state.nodes)
        if node is None or op_name(node) != term.op or node.outputs[term.output] is not value:
            found = "no node" if node is None else op_name(node)
            self.miss(depth, f"%{value.name} comes from {found}, wanted {term.op}")
            return
        for name, wanted in term.attributes.items():
            if not _holds(wanted, node.attributes.get(name)):
                self.miss(depth, f"attribute {name} of {node.name} is not as wanted")
                return
        inputs = list(node.inputs)
        if len(inputs) > len(term.inputs):
            self.miss(depth, f"{node.name} has {len(inputs)} inputs, wanted {len(term.inputs)}")
            return
        inputs += [None] * (len(term.inputs) - len(inputs))
        entered = dataclasses.replace(state.bind(term, value), nodes=(*state.nodes, (node, term)))
        yield from self._inputs(term.inputs, inputs, entered)
        if len(inputs) == 2 and node.op_type in _COMMUTATIVE and inputs[0] is not inputs[1]:
            yield from self._inputs(term.inputs, inputs[::-1], entered)

    def _inputs(
        self, terms: tuple[Term, ...], values: list[ir.Value | None], state: _State
    ) -> Iterator[_State]:
        if not terms:
            yield state
            return
        for next_state in self._term(terms[0], values[0], state):
            yield from self._inputs(terms[1:], values[1:], next_state)

    def _finish(self, root: ir.Node, state: _State) -> Match | None:
        inner = _producers_first(root, {node for node, _ in state.nodes})
        shared = {node for node, term in state.nodes if term.shared}
        kept: set[ir.Node] = {root}
        for node in reversed(inner[:-1]):  # consumers before producers
            reader = _outside_reader(node, kept)
            if reader is None:
                kept.add(node)
            elif node not in shared:
                self.miss(len(state.nodes), f"{node.name} inside the pattern {reader}")
                return None
        values = {term.name: value for term, value in state.terms.items() if term.name}
        return Match(
            root,
            values,
            {term.name: node for node, term in state.nodes if term.name},
            tuple(node for node in inner if node in kept),
        )


def _refused(term: Term, value: ir.Value, state: _State) -> str | None:
    """Why ``value`` is not what a term that needs no further search wants."""
    if isinstance(term, Number):
        found = scalar_of(value)
        if found is None or abs(found - term.value) > _NUMBER_RTOL * abs(term.value):
            return f"is not the constant {term.value:g}"
    elif isinstance(term, Var | Call):
        bound = state.terms.get(term)
        if bound is not None and bound is not value:
            return f"is not %{bound.name} once more"
        if isinstance(term, Var) and term.const and constant(value) is None:
            return "is not a constant"
    else:
        return "stands where no input is wanted"
    return None


def _holds(wanted: Any, attr: ir.Attr | None) -> bool:
    if callable(wanted):
        return bool(wanted(attr))
    if attr is None:
        return False
    value = attr.value
    if isinstance(value, float):
        return bool(np.isclose(value, wanted, rtol=_NUMBER_RTOL, atol=0.0))
    return list(value) == list(wanted) if isinstance(value, list | tuple) else value == wanted


def _producers_first(root: ir.Node, nodes: set[ir.Node]) -> list[ir.Node]:
    order: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> None:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer in nodes and producer not in order:
                visit(producer)
        order[node] = None

    visit(root)
    return list(order)


def _outside_reader(node: ir.Node, inside: set[ir.Node]) -> str | None:
    for output in node.outputs:
        if output.is_graph_output():
            return "gives a graph output"
        for use in output.uses():
            if use.node not in inside:
                return f"is also read by {use.node.name}"
    return None

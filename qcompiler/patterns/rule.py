"""Local rewrites: a pattern, a condition that gives its reason, and a replacement.

:func:`apply_rules` is the engine. It makes names fresh, keeps the names of graph outputs, checks
that inner results do not leak, hands provenance on, stamps new nodes with the pass, removes what
the rewrite left unread, limits the number of rewrites and remembers near misses.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import Tape, replace
from qcompiler.ir.walk import op_name
from qcompiler.patterns.match import Match, Matcher
from qcompiler.patterns.terms import Operators, Term, Var, root_ops

__all__ = ["Applied", "NearMiss", "Rule", "apply_rules", "remove_unread", "stamp"]

_LOG = logging.getLogger(__name__)
_PASS = "qcompiler.pass"  # node metadata: the pass that made the node
_FUEL = 100_000  # rewrites of one rule before we call it endless

Rewritten = ir.Value | Sequence[ir.Value] | Mapping[ir.Value, ir.Value]


class Rule(abc.ABC):
    """One local rewrite. Subclasses write ``pattern``, ``rewrite`` and perhaps ``where``.

    ``pattern(self, op, x, w, ...)`` is called once with an :class:`Operators` and a :class:`Var`
    for each further parameter.
    """

    name: ClassVar[str]
    pattern: Callable[..., Term]

    def where(self, m: Match) -> str | None:
        """Why this match must be left alone, or None to rewrite it."""
        return None

    @abc.abstractmethod
    def rewrite(self, m: Match, tape: Tape) -> Rewritten:
        """Build the replacement on ``tape``.

        Returns:
            The value for the root's first output, a sequence for all of them, or a mapping from
            values of matched nodes to what takes their place.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class NearMiss:
    """Where a rule nearly matched, and why it did not.

    Attributes:
        rule: Name of the rule.
        node: Name of the node at which the match began.
        depth: Nodes that did match.
        reason: What was wrong with the next one, or what ``where`` said.
    """

    rule: str
    node: str
    depth: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Applied:
    """What :func:`apply_rules` did.

    Attributes:
        rewrites: How often each rule was applied, by name.
        misses: The deepest near miss of each rule at each node it was left with.
    """

    rewrites: Mapping[str, int]
    misses: tuple[NearMiss, ...]

    @property
    def modified(self) -> bool:
        """Whether anything was rewritten."""
        return any(self.rewrites.values())


def apply_rules(
    graph: ir.Graph, rules: Iterable[Rule], pass_name: str, *, fuel: int = _FUEL
) -> Applied:
    """Apply each rule until it matches nowhere; the rules in order, so larger patterns first.

    Only nodes of ``graph`` are matched, nested bodies are not entered (what a body reads counts as
    a reader, so it cannot leak).

    Args:
        graph: Edited in place.
        rules: In the order of preference.
        pass_name: Stamped on new nodes.
        fuel: Most rewrites of one rule.

    Returns:
        Counts and near misses.

    Raises:
        QcError: QC901 when a rule uses up the fuel.
    """
    counts: dict[str, int] = {}
    misses: list[NearMiss] = []
    for rule in rules:
        counts[rule.name] = 0
        matcher = Matcher(_pattern_of(rule))
        ops = root_ops(matcher.pattern)
        while True:
            done, missed = _sweep(graph, rule, matcher, ops, pass_name, fuel - counts[rule.name])
            counts[rule.name] += done
            if not done:
                break
        misses.extend(missed)
    for miss in misses:
        _LOG.debug("%s: %s at %s left: %s", pass_name, miss.rule, miss.node, miss.reason)
    return Applied(counts, tuple(misses))


def stamp(nodes: Iterable[ir.Node], pass_name: str) -> None:
    """Note on nodes which pass made them."""
    for node in nodes:
        node.metadata_props[_PASS] = pass_name


def remove_unread(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Remove the producers of ``values`` that nobody reads any more, and theirs in turn."""
    stack = list(values)
    while stack:
        value = stack.pop()
        node = None if value is None else value.producer()
        if node is None or node.graph is not graph:
            if value is not None and value.is_initializer() and not value.uses():
                _drop_initializer(graph, value)
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        stack.extend(node.inputs)
        graph.remove(node, safe=True)


def _drop_initializer(graph: ir.Graph, value: ir.Value) -> None:
    kept = value.is_graph_output() or value.is_graph_input()
    if not kept and value.name is not None and graph.initializers.get(value.name) is value:
        del graph.initializers[value.name]


def _pattern_of(rule: Rule) -> Term:
    names = list(inspect.signature(rule.pattern).parameters)
    return rule.pattern(Operators(), *(Var(name) for name in names[1:]))


def _sweep(
    graph: ir.Graph, rule: Rule, matcher: Matcher, ops: frozenset[str], pass_name: str, fuel: int
) -> tuple[int, list[NearMiss]]:
    """One walk over the nodes that existed at its start, in graph order."""
    done = 0
    misses = []
    for node in [item for item in graph if op_name(item) in ops]:
        if node.graph is not graph:
            continue  # an earlier rewrite of this sweep removed it
        if _rewrite_at(graph, rule, matcher, node, pass_name):
            done += 1
            if done > fuel:
                raise QcError(
                    Code.PASS_CONTRACT, pass_name, f"rule {rule.name} does not come to an end"
                )
        elif matcher.depth > 1:
            misses.append(NearMiss(rule.name, node.name or "", matcher.depth, matcher.reason))
    return done, misses


def _rewrite_at(
    graph: ir.Graph, rule: Rule, matcher: Matcher, node: ir.Node, pass_name: str
) -> bool:
    for match in matcher.matches(node):
        reason = rule.where(match)
        if reason is not None:
            matcher.miss(1_000 + len(match.inner), reason)  # deeper than any structural failure
            continue
        tape = Tape(graph, node.name or rule.name)
        values = _mapping(match, rule.rewrite(match, tape))
        stamp(tape.nodes, pass_name)
        inputs = [value for item in match.inner for value in item.inputs]
        replace(graph, match.inner, tape.nodes, values)
        remove_unread(graph, inputs)
        return True
    return False


def _mapping(match: Match, result: Rewritten) -> Mapping[ir.Value, ir.Value]:
    if isinstance(result, Mapping):
        return result
    if isinstance(result, ir.Value):
        return {match.root.outputs[0]: result}
    return dict(zip(match.root.outputs, result, strict=True))

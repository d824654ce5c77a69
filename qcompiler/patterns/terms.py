"""Patterns over a graph.

A pattern is built by calling operators on variables, like the graph it describes::

    def pattern(self, op, x):
        erf = op.Erf(op.Div(x, 1.41421356))
        return op.Mul(op.Mul(x, 0.5), op.Add(erf, 1.0))

Numbers match scalar constants, commutative operators match in both orders, ``one_of`` tries
alternatives, ``maybe`` allows a missing input, ``None`` demands one. A term used twice must match
the same value twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "Call", "Maybe", "Number", "OneOf", "Operators", "Term", "Var", "maybe", "one_of", "root_ops",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Var:
    """Matches any value, the same one wherever the variable stands.

    Attributes:
        name: The key in :class:`Match`.
        const: Whether the value must be a constant.
    """

    name: str
    const: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Number:
    """Matches a constant with one element close to ``value``."""

    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class Maybe:
    """Matches a missing input, or what ``term`` matches."""

    term: Term


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Matches what one of the alternatives matches, the first preferred."""

    terms: tuple[Term, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Matches output ``output`` of a node.

    Attributes:
        op: Operator, ``domain:Op`` outside the standard domain.
        inputs: A term per input; a node with more inputs does not match.
        attributes: Value wanted, or a predicate on the attribute (None when absent).
        name: Key of the node and its output in :class:`Match`, or "".
        output: Which output of the node.
        shared: Whether others may read the node's outputs; if they do, it stays in the graph.
    """

    op: str
    inputs: tuple[Term, ...]
    attributes: Mapping[str, Any]
    name: str = ""
    output: int = 0
    shared: bool = False

    def named(self, name: str) -> Call:
        """Capture the node and its output under ``name``."""
        return dataclasses.replace(self, name=name)

    def may_be_shared(self) -> Call:
        """Let others read the result too."""
        return dataclasses.replace(self, shared=True)


Term = Var | Number | Maybe | OneOf | Call | None


class Operators:
    """``op.Softmax(x, axis=-1)`` makes a :class:`Call`; ``op("com.microsoft:Gelu", x)`` too."""

    def __getattr__(self, op_type: str) -> Callable[..., Call]:
        """The maker of calls of one standard operator."""
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self(op_type, *inputs, **attributes)

    def __call__(self, op: str, *inputs: Term | float, **attributes: Any) -> Call:
        """A call of any operator."""
        return Call(op, tuple(_term(item) for item in inputs), attributes)


def one_of(*terms: Term | float) -> OneOf:
    """Try the terms in order."""
    return OneOf(tuple(_term(term) for term in terms))


def maybe(term: Term | float) -> Maybe:
    """An input that may be missing."""
    return Maybe(_term(term))


def root_ops(term: Term) -> frozenset[str]:
    """Operators that a node must have for the pattern to match at it."""
    if isinstance(term, Call):
        return frozenset({term.op})
    assert isinstance(term, OneOf), "a pattern's root is an operator, or one_of operators"
    return frozenset().union(*(root_ops(item) for item in term.terms))


def _term(item: Term | float) -> Term:
    return Number(float(item)) if isinstance(item, int | float) else item

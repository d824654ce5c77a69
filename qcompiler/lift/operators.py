"""The table of operators, and what a function says of itself.

A function takes ONNX inputs by position (absent ones as None) and attributes by their ONNX names.
Its annotations are checked when a node is lifted:

- an attribute it has no parameter for, or a value outside a ``Literal``, refuses the node;
- ``outputs``: it is told how many outputs the node has, and returns a tuple when more than one;
- ``Ints`` and ``Number``: it takes a constant operand as a Python literal.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from qcompiler.lift import (
    attention,
    conv_pool,
    elementwise,
    linear,
    normalization,
    quantize,
    reduction,
    resize,
    shape,
)
from qcompiler.lift.operands import Table

__all__ = ["OPERATORS", "Signature", "find", "signature_of"]

_FAMILIES = (
    elementwise, shape, linear, conv_pool, resize, normalization, attention, reduction, quantize,
)  # fmt: skip
OPERATORS: Table = {
    key: function for family in _FAMILIES for key, function in family.OPERATORS.items()
}


@functools.cache
def _versions() -> Mapping[tuple[str, str], list[tuple[int, Callable[..., Any]]]]:
    by_name: dict[tuple[str, str], list[tuple[int, Callable[..., Any]]]] = {}
    for (domain, op_type, since), function in OPERATORS.items():
        by_name.setdefault((domain, op_type), []).append((since, function))
    return {name: sorted(items, key=lambda item: -item[0]) for name, items in by_name.items()}


def find(domain: str, op_type: str, opset: int) -> Callable[..., Any] | None:
    """The function of the newest version that is not newer than ``opset``, or None."""
    name = ("" if domain == "ai.onnx" else domain, op_type)
    for since, function in _versions().get(name, ()):
        if since <= opset:
            return function
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """What an operator function accepts.

    Attributes:
        kinds: For each positional parameter ``ints``, ``number`` or ``tensor``.
        variadic: It takes any number of inputs.
        names: Names that attributes may have.
        allowed: Allowed values of restricted attributes.
        opaque: Written in C: any inputs, no attributes.
    """

    kinds: tuple[str, ...] = ()
    variadic: bool = False
    names: frozenset[str] = frozenset()
    allowed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    opaque: bool = False


@functools.cache
def signature_of(function: Callable[..., Any]) -> Signature:
    """Read a function's parameters and annotations."""
    if not inspect.isfunction(function) or not function.__module__.startswith(__package__):
        return Signature(opaque=True)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    positional = [item for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    named = [item.name for item in parameters if item.kind is not item.VAR_POSITIONAL]
    return Signature(
        kinds=tuple(_kind(hints[item.name]) for item in positional),
        variadic=any(item.kind is item.VAR_POSITIONAL for item in parameters),
        names=frozenset(named),
        allowed={
            name: typing.get_args(hints[name])
            for name in named
            if typing.get_origin(hints[name]) is Literal
        },
    )


def _kind(hint: Any) -> str:
    for item in (hint, *typing.get_args(hint)):  # an Optional wraps it in some Python versions
        if typing.get_origin(item) is typing.Annotated or hasattr(item, "__metadata__"):
            return str(item.__metadata__[0])
    return "tensor"

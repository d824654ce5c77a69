"""What integer vectors hold, for :class:`qcompiler.analysis.dims.Dims`: shape arithmetic.

A rule gives the elements of the first output of an operator, or None when it cannot tell them all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from qcompiler.analysis.dims import Dim, Dims, Shape

__all__ = ["LONGEST", "NUMBERS"]

LONGEST = 16  # elements; longer vectors are data, not shapes


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _shape_of(dims: Dims, node: ir.Node) -> Shape | None:
    source = _input(node, 0)
    shape = None if source is None else dims.shape(source)
    if shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    return shape[start:end]


def _forward(dims: Dims, node: ir.Node) -> Shape | None:
    return dims.numbers(_input(node, 0))


def _concat(dims: Dims, node: ir.Node) -> Shape | None:
    result: list[Dim] = []
    for value in node.inputs:
        part = dims.numbers(value)
        if part is None:
            return None
        result.extend(part)
    return tuple(result)


def _picked(dims: Dims, node: ir.Node) -> Shape | None:
    data, indices = dims.numbers(_input(node, 0)), dims.numbers(_input(node, 1))
    if data is None or indices is None:
        return None
    picked = []
    for index in indices:
        if not isinstance(index, int) or not -len(data) <= index < len(data):
            return None
        picked.append(data[index])
    return tuple(picked)


def _slice(dims: Dims, node: ir.Node) -> Shape | None:
    data = dims.numbers(_input(node, 0))
    starts, ends = dims.numbers(_input(node, 1)), dims.numbers(_input(node, 2))
    steps = dims.numbers(_input(node, 4)) or (1,)
    if data is None or starts is None or ends is None:
        return None
    bounds = (starts[0], ends[0], steps[0])
    if not all(isinstance(bound, int) for bound in bounds):
        return None
    start, end, step = (int(bound) for bound in bounds if isinstance(bound, int))
    return data[start:end:step]


def _repeated(dims: Dims, node: ir.Node) -> Shape | None:
    shape = dims.numbers(_input(node, 0))
    fill = node.attributes.get_tensor("value", None)
    number = 0 if fill is None else fill.numpy().reshape(-1)[0]
    if shape is None or len(shape) != 1 or not isinstance(shape[0], int) or number != int(number):
        return None
    return (int(number),) * shape[0] if shape[0] <= LONGEST else None


def _paired(dims: Dims, node: ir.Node) -> list[tuple[Dim, ...]] | None:
    """The elements of all inputs side by side; a single number goes with each."""
    operands = [dims.numbers(value) for value in node.inputs]
    if any(operand is None for operand in operands):
        return None
    known = [operand for operand in operands if operand is not None]
    length = max(map(len, known))
    if any(len(operand) not in (1, length) for operand in known):
        return None
    return [
        tuple(operand[0 if len(operand) == 1 else index] for operand in known)
        for index in range(length)
    ]


def _arithmetic(compute: Callable[[int, int], int]) -> Callable[[Dims, ir.Node], Shape | None]:
    def rule(dims: Dims, node: ir.Node) -> Shape | None:
        result: list[Dim] = []
        for pair in _paired(dims, node) or ():
            a, b = pair
            if not isinstance(a, int) or not isinstance(b, int):
                return None
            result.append(compute(a, b))
        return tuple(result) or None

    return rule


def _equal(dims: Dims, node: ir.Node) -> Shape | None:
    """1 for equal, 0 for not; a symbolic size is no negative number."""
    result: list[Dim] = []
    for a, b in _paired(dims, node) or ():
        negative = any(isinstance(item, int) and item < 0 for item in (a, b))
        if a != b and not negative and not (isinstance(a, int) and isinstance(b, int)):
            return None
        result.append(int(a == b))
    return tuple(result) or None


def _chosen(dims: Dims, node: ir.Node) -> Shape | None:
    rows = _paired(dims, node)
    if rows is None or any(row[0] not in (0, 1) for row in rows):
        return None
    return tuple(row[1] if row[0] == 1 else row[2] for row in rows)


def _divide(a: int, b: int) -> int:
    """Integer division as ONNX and C do it; sizes are not negative, so it is the floor."""
    return a // b if b else 0


NUMBERS: dict[str, Callable[[Dims, ir.Node], Shape | None]] = {
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _forward),
    "Add": _arithmetic(operator.add),
    "Concat": _concat,
    "ConstantOfShape": _repeated,
    "Div": _arithmetic(_divide),
    "Equal": _equal,
    "Gather": _picked,
    "Mul": _arithmetic(operator.mul),
    "Shape": _shape_of,
    "Slice": _slice,
    "Sub": _arithmetic(operator.sub),
    "Where": _chosen,
}

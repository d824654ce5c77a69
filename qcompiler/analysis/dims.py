"""Symbolic sizes: the shapes of values, and what shape arithmetic computes, as far as provable.

A :data:`Dim` is an int, the name of a symbolic dimension, or ``(value, axis)``: the size that
``value`` has there, whatever it is. Two sizes are known to be equal when their Dims are equal;
nothing is ever guessed, so a rewrite may rest on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.analysis.dim_numbers import LONGEST, NUMBERS
from qcompiler.analysis.dim_shapes import SHAPES, split_shape
from qcompiler.ir.edit import Tape, add_initializer, constant

__all__ = ["Dim", "Dims"]

Dim = int | str | tuple[ir.Value, int]
Shape = tuple[Dim, ...]


class Dims:
    """Shapes of the values of one graph, worked out once and remembered.

    Values made later are worked out on demand. Rewriting the graph meanwhile is safe as long as
    values keep their meaning.
    """

    def __init__(self, graph: ir.Graph) -> None:
        """Work out the shapes of all values of ``graph``."""
        self._graph = graph
        self._shapes: dict[ir.Value, Shape | None] = {}
        self._numbers: dict[ir.Value, Shape | None] = {}
        for node in graph:  # producers first, so that no chain of calls grows with the model
            for output in node.outputs:
                self.shape(output)

    def shape(self, value: ir.Value) -> Shape | None:
        """The shape of ``value``; None when not even its rank is known."""
        if value not in self._shapes:
            self._shapes[value] = None  # a guard; graphs have no cycles
            self._shapes[value] = self._shape(value)
        return self._shapes[value]

    def numbers(self, value: ir.Value | None) -> Shape | None:
        """What an integer scalar or vector holds, one Dim for each element."""
        if value is None:
            return None
        if value not in self._numbers:
            self._numbers[value] = None
            self._numbers[value] = self._compute(value)
        return self._numbers[value]

    def source(self, dim: Dim) -> tuple[ir.Value, int] | None:
        """The first value of the graph with an axis of this size, and the axis."""
        if isinstance(dim, tuple):
            return dim
        if isinstance(dim, str):
            for value in self._values():
                for axis, size in enumerate(value.shape or ()):
                    if isinstance(size, ir.SymbolicDim) and size.value == dim:
                        return value, axis
        return None

    def _values(self) -> Iterator[ir.Value]:
        yield from self._graph.inputs
        for node in self._graph:
            yield from node.outputs

    def write(self, tape: Tape, dims: Sequence[Dim]) -> ir.Value | None:
        """Compute a shape at run time, or None when a size has no source."""
        parts: list[ir.Value] = []
        sizes: dict[Dim, ir.Value] = {}
        for is_fixed, run in itertools.groupby(dims, lambda dim: isinstance(dim, int)):
            if is_fixed:
                array = np.array(list(run), np.int64)
                parts.append(add_initializer(tape.graph, f"{tape.prefix}/size", array))
                continue
            for dim in run:
                source = self.source(dim)
                if source is None:
                    return None
                if dim not in sizes:
                    value, axis = source
                    sizes[dim] = tape.op("Shape", value, start=axis, end=axis + 1)
                parts.append(sizes[dim])
        if len(parts) == 1:
            return parts[0]
        result: ir.Value = tape.op("Concat", *parts, axis=0)
        return result

    def _shape(self, value: ir.Value) -> Shape | None:
        node = value.producer()
        found: Shape | None = None
        if value.const_value is not None:
            found = tuple(value.const_value.shape.numpy())
        elif node is not None and node.domain in ("", "ai.onnx"):
            if node.op_type == "Split":
                found = split_shape(self, node, value)
            elif value is node.outputs[0] and node.op_type in SHAPES:
                found = SHAPES[node.op_type](self, node)
        if value.shape is None:
            return found
        stated: list[Dim] = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                stated.append(size)
            elif (
                found is not None
                and len(found) == len(value.shape)
                and not (isinstance(found[axis], tuple) and size.value)
            ):
                stated.append(found[axis])
            else:
                stated.append(size.value or (value, axis))
        return tuple(stated)

    def _compute(self, value: ir.Value) -> Shape | None:
        if value.const_value is not None and value.const_value.size > LONGEST:
            return None
        array = constant(value)
        if array is not None:
            if array.dtype.kind not in "iu" or array.size > LONGEST:
                return None
            return tuple(int(item) for item in array.reshape(-1))
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        rule = NUMBERS.get(node.op_type)
        return None if rule is None else rule(self, node)

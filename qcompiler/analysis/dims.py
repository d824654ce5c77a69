"""Symbolic sizes: the shapes of values, and what shape arithmetic computes, as far as provable.

A :data:`Dim` is an int, the name of a symbolic dimension, or ``(value, axis)``: the size that
``value`` has there, whatever it is. Two sizes are known to be equal when their Dims are equal;
nothing is ever guessed, so a rewrite may rest on it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant

__all__ = ["Dim", "Dims"]

Dim = int | str | tuple[ir.Value, int]
Shape = tuple[Dim, ...]

_LONGEST = 16  # elements of a constant that can be a shape
_ONE = 1


class Dims:
    """Shapes of the values of one graph, worked out once and remembered.

    Values made later are worked out on demand. Rewriting the graph meanwhile is safe as long as values keep their meaning.
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
        """A value and an axis of it with this size, to compute it from at run time."""
        if isinstance(dim, tuple):
            return dim
        if isinstance(dim, str):
            for value in self._graph.inputs:
                for axis, size in enumerate(value.shape or ()):
                    if isinstance(size, ir.SymbolicDim) and size.value == dim:
                        return value, axis
        return None

    def write(self, tape: Tape, dims: Sequence[Dim]) -> ir.Value | None:
        """Compute a shape at run time, or None when a size has no source."""
        parts: list[ir.Value] = []
        for dim in dims:
            if isinstance(dim, int):
                parts.append(
                    add_initializer(tape.graph, f"{tape.prefix}/size", np.array([dim], np.int64))
                )
                continue
            source = self.source(dim)
            if source is None:
                return None
            value, axis = source
            parts.append(tape.op("Shape", value, start=axis, end=axis + 1))
        result: ir.Value = tape.op("Concat", *parts, axis=0)
        return result

    def _shape(self, value: ir.Value) -> Shape | None:
        node = value.producer()
        found = None
        if node is not None and node.domain in ("", "ai.onnx") and value is node.outputs[0]:
            rule = _SHAPES.get(node.op_type)
            found = None if rule is None else rule(self, node)
        if value.shape is None:
            if found is None and value.const_value is not None:
                return tuple(value.const_value.shape.numpy())
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
        if value.const_value is not None and value.const_value.size > _LONGEST:
            return None
        array = constant(value)
        if array is not None:
            if array.dtype.kind not in "iu" or array.size > _LONGEST:
                return None
            return tuple(int(item) for item in array.reshape(-1))
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        rule = _NUMBERS.get(node.op_type)
        return None if rule is None else rule(self, node)


# --- shapes --------------------------------------------------------------------------------------


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _of(dims: Dims, node: ir.Node, index: int) -> Shape | None:
    value = _input(node, index)
    return None if value is None else dims.shape(value)


def _same(dims: Dims, node: ir.Node) -> Shape | None:
    return _of(dims, node, 0)


def _broadcast(shapes: Sequence[Shape | None], out: ir.Value) -> Shape | None:
    if not shapes or any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known))
    result: list[Dim] = []
    for axis in range(rank):
        sizes = {shape[axis - rank] for shape in known if len(shape) >= rank - axis} - {_ONE}
        fixed = [size for size in sizes if isinstance(size, int)]
        if not sizes:
            result.append(1)
        elif len(sizes) == 1 or len(fixed) == 1:
            # next to an int > 1 the others must be the same or 1
            result.append(fixed[0] if fixed else next(iter(sizes)))
        else:
            result.append((out, axis))
    return tuple(result)


def _elementwise(dims: Dims, node: ir.Node) -> Shape | None:
    return _broadcast([_of(dims, node, i) for i in range(len(node.inputs))], node.outputs[0])


def _matmul(dims: Dims, node: ir.Node) -> Shape | None:
    a, b = _of(dims, node, 0), _of(dims, node, 1)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = _broadcast([a[:-2], b[:-2]], node.outputs[0])
    return None if batch is None else (*batch, a[-2], b[-1])


def _transpose(dims: Dims, node: ir.Node) -> Shape | None:
    shape = _same(dims, node)
    if shape is None:
        return None
    perm = node.attributes.get_ints("perm", list(range(len(shape)))[::-1])
    return tuple(shape[axis] for axis in perm)


def _reshape(dims: Dims, node: ir.Node) -> Shape | None:
    shape, target = _same(dims, node), dims.numbers(_input(node, 1))
    if target is None:
        return None
    out = node.outputs[0]
    zero_is_copy = not node.attributes.get_int("allowzero", 0)
    result: list[Dim] = []
    for axis, size in enumerate(target):
        if size == 0 and zero_is_copy:
            result.append(shape[axis] if shape is not None else (out, axis))
        else:
            result.append(size)
    if -1 in target:
        axis = target.index(-1)
        rest = result[:axis] + result[axis + 1 :]
        missing = None if shape is None else _quotient(shape, rest)
        result[axis] = (out, axis) if missing is None else missing
    return tuple(result)


def _quotient(whole: Sequence[Dim], parts: Sequence[Dim]) -> Dim | None:
    """The one size that ``parts`` lack to hold as many elements as ``whole``."""
    left = Counter(size for size in whole if not isinstance(size, int))
    left.subtract(Counter(size for size in parts if not isinstance(size, int)))
    if any(count < 0 for count in left.values()):
        return None
    over = math.prod(size for size in whole if isinstance(size, int))
    under = math.prod(size for size in parts if isinstance(size, int))
    symbols = list(left.elements())
    if under == 0 or over % under or len(symbols) > 1:
        return None
    if not symbols:
        return over // under
    return symbols[0] if over == under else None


def _unsqueeze(dims: Dims, node: ir.Node) -> Shape | None:
    shape, axes = _same(dims, node), dims.numbers(_input(node, 1))
    if axes is None and "axes" in node.attributes:
        axes = tuple(node.attributes.get_ints("axes"))
    if shape is None or axes is None or not all(isinstance(axis, int) for axis in axes):
        return None
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes if isinstance(axis, int)}
    rest = iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


def _gather(dims: Dims, node: ir.Node) -> Shape | None:
    data, indices = _of(dims, node, 0), _of(dims, node, 1)
    if data is None or indices is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _expand(dims: Dims, node: ir.Node) -> Shape | None:
    return _broadcast([_same(dims, node), dims.numbers(_input(node, 1))], node.outputs[0])


def _range(dims: Dims, node: ir.Node) -> Shape | None:
    ends = [dims.numbers(value) for value in node.inputs]
    start, limit, step = ends if len(ends) == 3 else (None, None, None)
    if start == (0,) and step == (1,) and limit is not None:
        return limit
    return ((node.outputs[0], 0),)


def _attention(dims: Dims, node: ir.Node) -> Shape | None:
    q, v = _of(dims, node, 0), _of(dims, node, 2)
    if q is None or v is None or len(q) != len(v):
        return None
    if len(q) == 4:
        return (*q[:3], v[3])
    heads = node.attributes.get_int("q_num_heads", 0)
    kv_heads = node.attributes.get_int("kv_num_heads", heads)
    width = v[2] * heads // kv_heads if isinstance(v[2], int) and kv_heads else None
    return (q[0], q[1], width if width is not None else (node.outputs[0], 2))


_UNARY = (
    "Abs", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "Neg", "Not", "RMSNormalization",
    "Reciprocal", "Relu", "Sigmoid", "Softmax", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_BINARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
    "Mul", "Or", "Pow", "Sub", "Where",
)  # fmt: skip
_SHAPES: dict[str, Callable[[Dims, ir.Node], Shape | None]] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BINARY, _elementwise),
    "Attention": _attention,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


# --- what integer tensors hold -------------------------------------------------------------------


def _shape_of(dims: Dims, node: ir.Node) -> Shape | None:
    shape = _same(dims, node)
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


_NUMBERS: dict[str, Callable[[Dims, ir.Node], Shape | None]] = {
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _forward),
    "Concat": _concat,
    "Gather": _picked,
    "Shape": _shape_of,
    "Slice": _slice,
}

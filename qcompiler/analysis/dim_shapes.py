"""Shape rules of operators, for :class:`qcompiler.analysis.dims.Dims`.

A rule gives the shape of the first output, with ``(output, axis)`` for a size it cannot tell, or
None when it cannot even tell the rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from qcompiler.analysis.dims import Dim, Dims, Shape

__all__ = ["SHAPES", "split_shape"]

_ENDLESS = 2**31 - 1  # an end that exporters write for "to the last"


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
        sizes = {shape[axis - rank] for shape in known if len(shape) >= rank - axis} - {1}
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


def _constant(dims: Dims, node: ir.Node) -> Shape | None:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    return None if tensor is None else tuple(tensor.shape.numpy())


def _concatenated(dims: Dims, node: ir.Node) -> Shape | None:
    shapes = [_of(dims, node, index) for index in range(len(node.inputs))]
    first = shapes[0]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return None
    axis = node.attributes.get_int("axis", 0) % len(first)
    sizes = [shape[axis] for shape in shapes if shape is not None]
    whole = [size for size in sizes if isinstance(size, int)]
    along = sum(whole) if len(whole) == len(sizes) else (node.outputs[0], axis)
    return (*first[:axis], along, *first[axis + 1 :])


def _sliced(dims: Dims, node: ir.Node) -> Shape | None:
    shape, starts = _same(dims, node), dims.numbers(_input(node, 1))
    ends, axes = dims.numbers(_input(node, 2)), dims.numbers(_input(node, 3))
    steps = dims.numbers(_input(node, 4)) or (1,) * len(starts or ())
    if shape is None or starts is None or ends is None:
        return None
    axes = tuple(range(len(starts))) if axes is None else axes
    result = list(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(axis, int):
            return None
        size, axis = shape[axis], axis % len(shape)
        if start == 0 and step == 1 and isinstance(end, int) and end >= _ENDLESS:
            continue
        result[axis] = (node.outputs[0], axis)
        numbers = [item for item in (size, start, end, step) if isinstance(item, int)]
        if len(numbers) == 4:
            result[axis] = len(range(numbers[0])[slice(*numbers[1:])])
    return tuple(result)


def split_shape(dims: Dims, node: ir.Node, output: ir.Value) -> Shape | None:
    """The shape of one output of a Split."""
    shape = _same(dims, node)
    if shape is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(shape)
    index = next(i for i, item in enumerate(node.outputs) if item is output)
    sizes = dims.numbers(_input(node, 1))
    whole, parts = shape[axis], len(node.outputs)
    size: Dim = (output, axis)
    if sizes is not None:
        size = sizes[index]
    elif isinstance(whole, int) and whole % parts == 0:
        size = whole // parts
    return (*shape[:axis], size, *shape[axis + 1 :])


def _flattened(dims: Dims, node: ir.Node) -> Shape | None:
    shape, axis = _same(dims, node), node.attributes.get_int("axis", 1)
    if shape is None:
        return None
    cut = axis % len(shape) if axis < 0 else axis
    halves = [_quotient(half, ()) for half in (shape[:cut], shape[cut:])]
    return tuple(
        (node.outputs[0], index) if size is None else size for index, size in enumerate(halves)
    )


def _gemm(dims: Dims, node: ir.Node) -> Shape | None:
    a, b = _of(dims, node, 0), _of(dims, node, 1)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    rows = a[node.attributes.get_int("transA", 0)]
    return rows, b[1 - node.attributes.get_int("transB", 0)]


def _indexed(dims: Dims, node: ir.Node) -> Shape | None:
    return _of(dims, node, 1)


def _reduced(dims: Dims, node: ir.Node) -> Shape | None:
    shape, axes = _same(dims, node), dims.numbers(_input(node, 1))
    if "axes" in node.attributes:
        axes = tuple(node.attributes.get_ints("axes"))
    if shape is None or axes is None or not axes:
        return None
    gone = {axis % len(shape) for axis in axes if isinstance(axis, int)}
    if node.attributes.get_int("keepdims", 1):
        return tuple(1 if axis in gone else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _vector(dims: Dims, node: ir.Node) -> Shape | None:
    numbers = dims.numbers(node.outputs[0])
    return None if numbers is None else (len(numbers),)


def _filled(dims: Dims, node: ir.Node) -> Shape | None:
    return dims.numbers(_input(node, 0))


_UNARY = (
    "Abs", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "Neg", "Not", "RMSNormalization",
    "Reciprocal", "Relu", "Sigmoid", "Softmax", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_BINARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
    "Mul", "Or", "Pow", "Sub", "Where",
)  # fmt: skip
_REDUCING = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
SHAPES: dict[str, Callable[[Dims, ir.Node], Shape | None]] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BINARY, _elementwise),
    **dict.fromkeys(_REDUCING, _reduced),
    "Attention": _attention,
    "Concat": _concatenated,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Flatten": _flattened,
    "Gather": _gather,
    "GatherElements": _indexed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _vector,
    "Slice": _sliced,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

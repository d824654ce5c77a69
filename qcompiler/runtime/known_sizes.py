"""Sizes of an input that the graph's constants tell, where the input itself does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from qcompiler.ir.edit import constant

__all__ = ["known_sizes"]

_AS_THEY_ARE = frozenset({"Cast", "Clip", "Identity", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_BROADCASTING = frozenset({"Add", "Div", "Mul", "Sub"})

Shape = tuple[int, ...]
Axes = tuple[int, ...]  # by axis of a value, the axis of the input that it is
Wanted = tuple[int, int]  # axis of the operand, its size


def known_sizes(value: ir.Value) -> dict[int, int]:
    """Sizes by axis that the readers of an input want: channels of a convolution, rows of a weight.

    Looked for behind transpositions and operators that leave the shape as it is.

    Args:
        value: A graph input of known rank.
    """
    if value.shape is None:
        return {}
    found: dict[int, int] = {}
    stack: list[tuple[ir.Value, Axes]] = [(value, tuple(range(len(value.shape))))]
    seen = {value}
    while stack:
        current, axes = stack.pop()
        for node, index in current.uses():
            want = _WANTS.get(node.op_type)
            for axis, size in want(node, index, len(axes)) if want else ():
                if -len(axes) <= axis < len(axes):
                    found.setdefault(axes[axis], size)
            behind = _behind(node, index, axes)
            if behind is not None and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                stack.append((node.outputs[0], behind))
    return found


def _behind(node: ir.Node, index: int, axes: Axes) -> Axes | None:
    """Which axes of the input the result has; None where its shape is another."""
    if node.domain:
        return None
    if node.op_type in _AS_THEY_ARE and index == 0:
        return axes
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", tuple(reversed(range(len(axes)))))
        return tuple(axes[axis] for axis in perm) if len(perm) == len(axes) else None
    if node.op_type in _BROADCASTING and len(node.inputs) == 2:
        other = constant(node.inputs[1 - index])
        if other is not None and other.ndim <= len(axes):
            return axes
    return None


def _shape(node: ir.Node, index: int) -> Shape:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return ()
    return tuple(int(size) for size in value.const_value.shape.numpy())


def _conv(node: ir.Node, index: int, rank: int) -> list[Wanted]:
    weight = _shape(node, 1)
    if index or len(weight) != rank:
        return []
    return [(1, weight[1] * node.attributes.get_int("group", 1))]


def _matmul(node: ir.Node, index: int, rank: int) -> list[Wanted]:
    weight = _shape(node, 1)
    return [(-1, weight[-2])] if index == 0 and len(weight) > 1 else []


def _gemm(node: ir.Node, index: int, rank: int) -> list[Wanted]:
    weight = _shape(node, 1)
    if index or len(weight) != 2:
        return []
    turned = node.attributes.get_int("transA", 0)
    return [(0 if turned else 1, weight[node.attributes.get_int("transB", 0)])]


def _recurrent(node: ir.Node, index: int, rank: int) -> list[Wanted]:
    weight = _shape(node, 1)
    return [(2, weight[2])] if index == 0 and len(weight) == 3 else []


def _norm(axis: int) -> Callable[[ir.Node, int, int], list[Wanted]]:
    def wants(node: ir.Node, index: int, rank: int) -> list[Wanted]:
        scale = _shape(node, 1)
        return [(axis, scale[0])] if index == 0 and len(scale) == 1 else []

    return wants


def _broadcast(node: ir.Node, index: int, rank: int) -> list[Wanted]:
    other = _shape(node, 1 - index) if index < 2 else ()
    if math.prod(other) == 1 or len(other) > rank:
        return []
    return [(axis - len(other), size) for axis, size in enumerate(other) if size > 1]


_WANTS: Mapping[str, Callable[[ir.Node, int, int], list[Wanted]]] = {
    "BatchNormalization": _norm(1),
    "Conv": _conv,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "InstanceNormalization": _norm(1),
    "LSTM": _recurrent,
    "LayerNormalization": _norm(-1),
    "MatMul": _matmul,
    "RNN": _recurrent,
    **dict.fromkeys(_BROADCASTING, _broadcast),
}

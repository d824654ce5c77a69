"""Constants of several products of few bits, one behind the other in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import add_initializer

__all__ = [
    "BIAS",
    "DATA",
    "GROUP_INDEX",
    "SCALE",
    "ZERO_POINT",
    "form",
    "input_at",
    "join",
    "tensor",
]

DATA, SCALE, ZERO_POINT, GROUP_INDEX, BIAS = range(1, 6)  # inputs of MatMulNBits


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input of the node; None where it has no so many."""
    return node.inputs[index] if index < len(node.inputs) else None


def tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of a constant."""
    assert value.const_value is not None, "asked for constants only"
    return value.const_value


def form(node: ir.Node, constants: Sequence[ir.Value | None]) -> tuple[Any, ...]:
    """What must be the same of products for their columns to stand in one.

    Args:
        node: A ``MatMulNBits``.
        constants: What it reads of weights, None where it does not.
    """
    attributes = {name: attr.value for name, attr in node.attributes.items() if name != "N"}
    kinds = [
        None if value is None else (tensor(value).dtype, len(tensor(value).shape))
        for value in constants
    ]
    return node.inputs[0], *sorted(attributes.items()), *kinds


def join(graph: ir.Graph, values: Sequence[ir.Value | None]) -> ir.Value | None:
    """The constants one behind the other, joined when they are read; None of Nones."""
    first, tensors = values[0], [tensor(value) for value in values if value is not None]
    if first is None:
        return None
    dtype, rest = tensors[0].dtype, tensors[0].shape.numpy()[1:]
    rows = sum(item.shape.numpy()[0] for item in tensors)
    joined = ir.LazyTensor(
        lambda: ir.Tensor(np.concatenate([item.numpy() for item in tensors]), dtype=dtype),
        dtype,
        ir.Shape([rows, *rest]),
    )
    value = add_initializer(graph, f"{first.name}/packed", joined)
    joined.name = value.name
    return value

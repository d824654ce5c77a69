"""The key-value cache of a decoder: which inputs and outputs it is, and its numbers when stored.

``GroupQueryAttention`` reads keys and values of earlier tokens from two inputs, ``[batch, kv heads,
past, head width]``, and gives them back with the new ones appended. Stored in int8 a number is
``q * scale``, with one scale, or one for each channel of each head: ``[1, kv heads, 1, width]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import constant

__all__ = [
    "COSINES",
    "KEY_SCALE",
    "VALUE_SCALE",
    "Cache",
    "attention_caches",
    "cache_in_floats",
    "scale_name",
]

COSINES, KEY_SCALE, VALUE_SCALE = 7, 12, 13  # inputs of GroupQueryAttention
_KEYS, _VALUES = (3, 1), (4, 2)  # its input and output of each


@dataclasses.dataclass(frozen=True, slots=True)
class Cache:
    """Keys or values of one attention.

    Attributes:
        node: The GroupQueryAttention.
        past: The model's input with those of earlier tokens.
        present: The model's output with those of all tokens.
        scale: Input of the node for their scale.
        heads: Key and value heads.
        width: Of a head.
        rotated: Channels of a head, from the first on, that the rotary embedding turns, the first
            half of them with the second; 0 for values, and where it is off.
    """

    node: ir.Node
    past: ir.Value
    present: ir.Value
    scale: int
    heads: int
    width: int
    rotated: int


def attention_caches(graph: ir.Graph) -> tuple[Cache, ...]:
    """All keys and values that are inputs and outputs of the model, of known sizes, in order."""
    found = []
    for node in graph:
        if (node.domain, node.op_type) != ("com.microsoft", "GroupQueryAttention"):
            continue
        for (index, given), scale in ((_KEYS, KEY_SCALE), (_VALUES, VALUE_SCALE)):
            past, present = node.inputs[index], node.outputs[given]
            if past is None or past.shape is None or not past.is_graph_input():
                continue
            _, heads, _, width = past.shape
            if not isinstance(heads, int) or not isinstance(width, int):
                continue
            others = [use.node for use in past.uses() if use.node is not node]
            measured = all(other.op_type == "Shape" for other in others)  # whatever the type
            if measured and present.is_graph_output():
                rotated = _rotated(node) if scale == KEY_SCALE else 0
                found.append(Cache(node, past, present, scale, heads, width, rotated))
    return tuple(found)


def _rotated(node: ir.Node) -> int:
    table = node.inputs[COSINES] if len(node.inputs) > COSINES else None
    if not node.attributes.get_int("do_rotary", 0) or table is None or table.shape is None:
        return 0
    columns = table.shape[1]
    return 2 * columns if isinstance(columns, int) else 0


def scale_name(output: str) -> str:
    """Name of the constant that scales an output of the cache."""
    return f"{output}/scale"


def cache_in_floats(
    model: ir.Model, outputs: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a model; those of an int8 cache as the floats that they stand for."""
    found = dict(outputs)
    for value in model.graph.outputs:
        scale = model.graph.initializers.get(scale_name(value.name or ""))
        if value.dtype is ir.DataType.INT8 and scale is not None and value.name in found:
            found[value.name] = found[value.name] * constant(scale)
    return found

"""Relu and Clip that another tool folded into the range of integers, written out again.

Integers whose zero point is their smallest number hold nothing below 0, so a QuantizeLinear with
such a range needs no Relu in front, and onnxruntime's quantizer leaves it out. Who takes the pair
out must put the clamp back, its upper end included, which may be that of a ReLU6.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit
from qcompiler_passes.quantized.stored import Stored, is_dequantize

__all__ = ["FoldedClamps"]

_POSITIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Sqrt"})
# operators that give no number below 0 when they read none
_KEEPING = frozenset(
    {
        "Add", "AveragePool", "Concat", "Expand", "Flatten", "Gather", "GlobalAveragePool",
        "Identity", "MaxPool", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
_DEPTH = 8  # operators looked back over


class FoldedClamps:
    """Unfolds clamps of one graph, once for each value and range."""

    def __init__(self, graph: ir.Graph) -> None:
        """Nothing unfolded yet."""
        self._graph = graph
        self._made: dict[tuple[ir.Value, float], ir.Value] = {}

    def unfold(self, value: ir.Value, quantize: ir.Node) -> ir.Value:
        """What stands for ``value`` without its QuantizeLinear: itself, or a Clip of it.

        Args:
            value: A float that the node rounds.
            quantize: The node.
        """
        stored = Stored.of(quantize)
        if stored is None or not stored.per_tensor or stored.dtype.is_floating_point():
            return value
        producer = value.producer()
        if producer is None or int(stored.zero_point) != _smallest(stored):
            return value
        if _never_negative(value, _DEPTH):
            return value
        top = float(stored.scale) * (2**stored.dtype.bitwidth - 1)
        if (value, top) not in self._made:
            dtype = np.float32 if value.dtype is None else value.dtype.numpy()
            tape = Tape(self._graph, f"{value.name}/folded")
            clip = tape.op("Clip", value, np.zeros((), dtype), np.asarray(top, dtype))
            clip.type, clip.shape = value.type, value.shape
            self._graph.insert_after(producer, tape.nodes)
            inherit(tape.nodes, [quantize])
            self._made[value, top] = clip
        return self._made[value, top]


def _never_negative(value: ir.Value | None, depth: int) -> bool:
    if value is None or not depth:
        return False
    array = constant(value)
    if array is not None:
        return array.dtype.kind in "iufb" and bool((array >= 0).all())
    node = value.producer()
    if node is None:
        return False
    if is_dequantize(node):
        stored = Stored.of(node)
        return stored is not None and bool((stored.zero_point == _smallest(stored)).all())
    if node.op_type == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and float(low.reshape(())) >= 0
    if node.op_type in _POSITIVE:
        return True
    if node.op_type not in _KEEPING:
        return False
    data = node.inputs if node.op_type in ("Add", "Concat", "Mul") else node.inputs[:1]
    return all(_never_negative(item, depth - 1) for item in data)


def _smallest(stored: Stored) -> int:
    return -(1 << (stored.dtype.bitwidth - 1)) if stored.dtype.is_signed() else 0

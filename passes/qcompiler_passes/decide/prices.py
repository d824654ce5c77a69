"""Predicted microseconds of nodes and conversions, at the observed shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from qcompiler.ir.walk import op_name
from qcompiler.targets.cost import Shapes, Work, cost_us, shape_of, work_of
from qcompiler.targets.schema import Kernel, Target

__all__ = ["Prices"]

# Of a target without costs only the order matters: low precision is better, conversions are few,
# and moving data is no reason to convert it.
_NO_FLOAT, _NO_KERNEL, _NO_CARRY, _NO_CONVERSION = 10.0, 1.0, 10.0, 0.5


_CONVOLUTIONS = ("Conv", "ConvTranspose")


def _before_convolution(value: ir.Value) -> bool:
    return any(node.op_type in _CONVOLUTIONS for node in value.consumers())


def _behind_convolution(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and producer.op_type in ("Relu", "Clip"):
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer is not None and producer.op_type in _CONVOLUTIONS


class Prices:
    """Asks the target's cost table. A target without one gets an order instead of times."""

    def __init__(self, target: Target, shapes: Shapes) -> None:
        """Prices on ``target`` at ``shapes``."""
        self._target = target
        self._shapes = shapes
        self.known = bool(target.costs)

    def node(self, node: ir.Node) -> float | None:
        """The node in float; None when its shapes are unknown."""
        return self._of(node, f"float.{op_name(node)}", _NO_FLOAT)

    def carrier(self, node: ir.Node) -> float | None:
        """A carrier or unifier on 8-bit data."""
        return self._of(node, f"carry.{op_name(node)}", _NO_CARRY)

    def kernel(self, row: Kernel, node: ir.Node, bits: int | None) -> float | None:
        """The node by a kernel row, without the conversions of its operands.

        Args:
            row: The kernel.
            node: The computing node.
            bits: Weight bits of a weight-only row: its cost may depend on them.
        """
        key = row.id if bits is None else f"{row.id}/{bits}"
        us = self._of(node, key, _NO_KERNEL)
        work = work_of(node, self._shapes) if self.known else None
        return us if us is None or work is None else us * work.slowdown

    def quantize(self, value: ir.Value, key: str = "quantize") -> float:
        """Making a value low precision; 0 when its shape is unknown."""
        return self._conversion(value, key) + self._relayout(value, _behind_convolution)

    def dequantize(self, value: ir.Value) -> float:
        """Making a value float again; 0 when its shape is unknown."""
        return self._conversion(value, "dequantize") + self._relayout(value, _before_convolution)

    def has_shape(self, node: ir.Node) -> bool:
        """Whether the node's work is known."""
        return work_of(node, self._shapes) is not None

    def _of(self, node: ir.Node, key: str, unpriced: float) -> float | None:
        if not self.known:
            return unpriced
        work = work_of(node, self._shapes)
        return None if work is None else cost_us(self._target, key, work)

    def _relayout(self, value: ir.Value, meets_convolution: Callable[[ir.Value], bool]) -> float:
        """Float and integer convolutions keep images in layouts of their own (NCHWc and NHWC)."""
        shape = shape_of(value, self._shapes)
        if not self.known or shape is None or len(shape) != 4 or not meets_convolution(value):
            return 0.0
        work = Work(0, math.prod(shape[:-1]), math.prod(shape))
        return cost_us(self._target, "layout", work) or 0.0

    def _conversion(self, value: ir.Value, key: str) -> float:
        if not self.known:
            return _NO_CONVERSION
        shape = shape_of(value, self._shapes)
        if shape is None:
            return 0.0
        work = Work(0, math.prod(shape[:-1]), math.prod(shape))
        return cost_us(self._target, key, work) or 0.0

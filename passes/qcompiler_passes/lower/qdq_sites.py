"""Read the QDQ dialect back: the operands, absorbed nodes and stored result of a planned node."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import constant
from qcompiler.numerics.affine import quantize
from qcompiler.schemes import QSpec
from qcompiler_passes.apply.weight_functions import LOOK_UP, SHIFT_ROWS
from qcompiler_passes.planned import INTO, KERNEL, SPEC

__all__ = ["Operand", "Site", "is_redundant_clamp", "operand_of", "refuse", "same_parameters"]


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """A value that is dequantized right before it is read.

    Attributes:
        q: The integers.
        scale: Their scale; one per row for a token operand.
        zero_point: Their zero point, or None for 0.
        dequantize: The DequantizeLinear node.
    """

    q: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    dequantize: ir.Node

    def has_zero_zero_point(self) -> bool:
        """Whether the zero point is a constant 0 everywhere."""
        if self.zero_point is None:
            return True
        array = constant(self.zero_point)
        return array is not None and not array.any()

    @property
    def spec(self) -> QSpec:
        """The spec of a rounded constant, as it is stamped on its DQ.

        Raises:
            QcError: QC501, it is none.
        """
        text = self.dequantize.metadata_props.get(SPEC)
        if text is None:
            raise refuse(self.dequantize, "its weight is not a rounded constant")
        return QSpec.parse(text)

    @property
    def matrix(self) -> tuple[int, int]:
        """``(K, N)`` of a rounded matrix."""
        shape = self.q.shape
        if shape is None or len(shape) != 2:
            raise refuse(self.dequantize, f"its weight has shape {shape}, wanted a matrix")
        return int(shape[0]), int(shape[1])  # type: ignore[arg-type]

    @property
    def shift(self) -> int:
        """What makes signed integers unsigned."""
        return 1 << (self.spec.width - 1) if self.spec.is_signed else 0

    def integers(self) -> npt.NDArray[Any]:
        """Elements of a rounded constant, a byte each."""
        return _array(self.q).astype(np.int8 if self.spec.is_signed else np.uint8, copy=False)

    def zeros(self) -> npt.NDArray[Any]:
        """Zero points of a rounded matrix ``[groups, N]``."""
        zeros = _array(self.zero_point)
        if not self.spec.float_zero:
            zeros = zeros.astype(np.int32)
        return zeros.reshape(-1, self.matrix[1])

    def scales(self) -> npt.NDArray[np.float32]:
        """Scales of a rounded matrix ``[groups, N]``."""
        return _array(self.scale).astype(np.float32, copy=False).reshape(-1, self.matrix[1])

    def scale_vector(self) -> ir.Node | None:
        """The DequantizeLinear of scales that are quantized themselves."""
        producer = self.scale.producer()
        while producer is not None and producer.op_type != "DequantizeLinear":
            source = producer.inputs[0] if producer.inputs else None
            producer = source.producer() if source is not None else None
        return producer


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A planned node with what it absorbs.

    Attributes:
        node: The computing node.
        absorbed: Nodes behind it that the plan fused into it, in order.
        quantize: The QuantizeLinear that stores the result, where it is its only reader.
    """

    node: ir.Node
    absorbed: tuple[ir.Node, ...]
    quantize: ir.Node | None

    @classmethod
    def of(cls, node: ir.Node) -> Site:
        """Follow the stamps behind ``node``."""
        absorbed, value = [], node.outputs[0]
        while (follower := _only_reader(value)) is not None:
            if follower.metadata_props.get(INTO) != node.name:
                break
            absorbed.append(follower)
            value = follower.outputs[0]
        stores = follower is not None and follower.op_type == "QuantizeLinear"
        return cls(node, tuple(absorbed), follower if stores else None)

    @property
    def kernel(self) -> str:
        """Id of the planned kernel."""
        return self.node.metadata_props[KERNEL]

    def operand(self, index: int) -> Operand:
        """The low-precision input ``index``.

        Raises:
            QcError: QC501, the input is not dequantized.
        """
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        found = operand_of(value)
        if found is None:
            raise refuse(self.node, f"input {index} is not dequantized", self.kernel)
        return found

    def stored(self) -> ir.Node:
        """The QuantizeLinear behind the node.

        Raises:
            QcError: QC501, the result is not quantized.
        """
        if self.quantize is None:
            raise refuse(self.node, "its result is not quantized", self.kernel)
        return self.quantize


def operand_of(value: ir.Value | None) -> Operand | None:
    """What a DequantizeLinear, or one times a row scale, makes ``value`` from; None otherwise."""
    producer = value.producer() if value is not None else None
    row_scale = None
    if producer is not None and producer.op_type == "Mul" and producer.inputs[0] is not None:
        row_scale = producer.inputs[1]
        producer = producer.inputs[0].producer()
    if producer is not None and (shifted := _shift_rows(producer)) is not None:
        q, zero_point, scale = shifted.inputs[:3]
        assert q is not None
        assert scale is not None
        return Operand(q, scale, zero_point, producer)
    if producer is not None and producer.op_type == LOOK_UP:
        q, _, scale = producer.inputs[:3]
        assert q is not None
        assert scale is not None
        return Operand(q, scale, None, producer)
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    q, scale = producer.inputs[0], row_scale or producer.inputs[1]
    assert q is not None
    assert scale is not None
    zero_point = producer.inputs[2] if len(producer.inputs) > 2 else None
    return Operand(q, scale, zero_point, producer)


def _shift_rows(node: ir.Node) -> ir.Node | None:
    """The function call that makes a weight with float zero points, which a Cast may end."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    called = source.producer() if source is not None else node
    return called if called is not None and called.op_type == SHIFT_ROWS else None


def is_redundant_clamp(clamp: ir.Node, stored: ir.Node) -> bool:
    """Whether quantizing saturates where ``clamp`` (Relu or Clip) does, so that it can go.

    Quantizing is monotone: clamping to [lo, hi] before it changes nothing exactly when lo is
    quantized to qmin and hi to qmax.
    """
    low, high = clamp_integers(clamp, stored)
    dtype = _integer_dtype(stored)
    limits = np.iinfo(dtype)
    return low <= limits.min and high >= limits.max


def clamp_integers(clamp: ir.Node, stored: ir.Node) -> tuple[int, int]:
    """The integers to which ``stored`` quantizes the bounds of ``clamp``."""
    limits = np.iinfo(_integer_dtype(stored))
    scale, zero_point = constant(stored.inputs[1]), constant(stored.inputs[2])
    if scale is None or zero_point is None:
        raise refuse(stored, "its parameters are not constant")
    bounds: list[npt.NDArray[np.generic] | None] = [np.zeros((), np.float32), None]
    if clamp.op_type == "Clip":
        given = [*clamp.inputs, None, None]
        bounds = [constant(given[1]), constant(given[2])]
    elif clamp.op_type != "Relu":
        raise refuse(clamp, f"{clamp.op_type} cannot be absorbed by integers")
    found = [limits.min, limits.max]
    for index, bound in enumerate(bounds):
        if bound is not None:
            x = np.asarray(bound, np.float32)
            zero = zero_point.astype(np.int32)
            q = quantize(x, scale, zero, int(limits.min), int(limits.max))
            found[index] = int(q)
    return found[0], found[1]


def same_parameters(a: ir.Node, b: ir.Node) -> bool:
    """Whether two Q or DQ nodes have equal constant scales and zero points."""
    for index in (1, 2):
        one = a.inputs[index] if index < len(a.inputs) else None
        other = b.inputs[index] if index < len(b.inputs) else None
        if one is other:
            continue
        left, right = constant(one), constant(other)
        if left is None or right is None or left.dtype != right.dtype:
            return False
        if not np.array_equal(left, right):
            return False
    return True


def refuse(node: ir.Node, why: str, kernel: str = "") -> QcError:
    """The error for a node that cannot be lowered."""
    of = f" of kernel {kernel}" if kernel else ""
    return QcError(
        Code.NO_LOWERING,
        node.name or "",
        f"{node.op_type}{of} cannot be lowered: {why}",
        "keep the node in float with a rule, or use form = 'qdq'",
    )


def _array(value: ir.Value | None) -> npt.NDArray[Any]:
    array = constant(value)
    assert array is not None, "a rounded weight is constant"
    return array


def _integer_dtype(stored: ir.Node) -> np.dtype[np.integer[Any]]:
    zero_point = constant(stored.inputs[2])
    assert zero_point is not None
    return zero_point.dtype


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node

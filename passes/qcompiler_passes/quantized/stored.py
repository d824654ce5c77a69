"""Read QuantizeLinear and DequantizeLinear nodes: types, scales, zero points, specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.ir.provenance import SPEC
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import Granularity, QSpec

__all__ = [
    "BYTES",
    "AdoptedWeights",
    "Stored",
    "dequantize_of",
    "is_dequantize",
    "is_quantize",
    "quantize_behind",
    "same",
]

_DOMAINS = ("", "com.microsoft")
BYTES = (ir.DataType.INT8, ir.DataType.UINT8)  # what every runtime computes with and moves
# Element types that a QSpec can name.
_NAMED = frozenset(
    {
        *BYTES,
        ir.DataType.INT2,
        ir.DataType.UINT2,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT32,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E5M2,
    }
)


def is_quantize(node: ir.Node | None) -> bool:
    """Whether the node is a QuantizeLinear, in either domain."""
    return node is not None and node.op_type == "QuantizeLinear" and node.domain in _DOMAINS


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether the node is a DequantizeLinear, in either domain."""
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in _DOMAINS


def dequantize_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives ``value``, or None."""
    producer = None if value is None else value.producer()
    return producer if is_dequantize(producer) else None


def quantize_behind(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear that is the only reader of ``value``, or None."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    use = next(iter(uses))
    return use.node if is_quantize(use.node) and use.idx == 0 else None


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """How a Q or DQ node with constant parameters stores its value.

    Attributes:
        node: The Q or DQ.
        dtype: Type of the integers (or 8-bit floats).
        scale: float32; scalar, ``[channels]``, or one axis in blocks.
        zero_point: int32, shape of ``scale``; zeros where the node has none.
        axis: As the node says, counted from the front; None for one scale per tensor.
        block_size: Elements per scale along ``axis``, or None.
    """

    node: ir.Node
    dtype: ir.DataType
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int32]
    axis: int | None
    block_size: int | None

    @classmethod
    def of(cls, node: ir.Node) -> Stored | None:
        """Read a Q or DQ; None when its parameters are not constant or its type is unknown."""
        scale = constant(node.inputs[1])
        given = node.inputs[2] if len(node.inputs) > 2 else None
        zero_point = constant(given)
        integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        dtype = given.dtype if given is not None and given.dtype is not None else None
        if dtype is None and integers is not None:
            dtype = integers.dtype
        if dtype is None and node.op_type == "QuantizeLinear":
            dtype = ir.DataType(node.attributes.get_int("output_dtype", int(ir.DataType.UINT8)))
        if scale is None or dtype not in _NAMED or (given is not None and zero_point is None):
            return None
        zeros = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point
        block_size = node.attributes.get_int("block_size", 0) or None
        axis = None
        if scale.size > 1 or block_size is not None:
            value = node.inputs[0]
            shape = value.shape if value is not None else None
            axis = node.attributes.get_int("axis", 1)
            if axis < 0:
                if shape is None:
                    return None
                axis += len(shape)
        if axis is None:
            scale, zeros = scale.reshape(()), zeros.reshape(())
        return cls(node, dtype, scale.astype(np.float32), zeros.astype(np.int32), axis, block_size)

    @property
    def per_tensor(self) -> bool:
        """Whether one scale holds for the whole tensor."""
        return self.axis is None

    @property
    def rank(self) -> int:
        """Of what is stored; 0 also where it is unknown."""
        value = self.node.inputs[0]
        return 0 if value is None or value.shape is None else len(value.shape)

    @property
    def symmetric(self) -> bool:
        """Whether 0 stands in the middle: zero points 0 of signed types, 2^(bits-1) of unsigned."""
        return bool((self.zero_point == self.middle).all())

    @property
    def middle(self) -> int:
        """The symmetric zero point of the type."""
        signed = self.dtype.is_signed() or self.dtype.is_floating_point()
        return 0 if signed else 1 << (self.dtype.bitwidth - 1)

    def shifted(self, dtype: ir.DataType) -> Stored:
        """The same in the 8-bit integer type of the other sign: integers and zero point move alike.

        ``(q + 128) - (z + 128) = q - z``, and saturation moves along, so nothing is rounded.
        """
        if dtype is self.dtype or not {dtype, self.dtype} <= set(BYTES):
            return self
        by = 128 if dtype is ir.DataType.UINT8 else -128
        zeros = np.asarray(self.zero_point + by, np.int32)
        return dataclasses.replace(self, dtype=dtype, zero_point=zeros)

    def spec(self) -> QSpec:
        """The spec of the tensor as it is stored, or as stamped where it uses fewer bits of it."""
        stamped = self.node.metadata_props.get(SPEC)
        if stamped is not None:
            said = QSpec.parse(stamped)
            if said.width < self.dtype.bitwidth:
                return said
        granularity = Granularity.TENSOR
        if self.axis is not None:
            granularity = Granularity.CHANNEL if self.block_size is None else Granularity.BLOCK
        return QSpec(
            self.dtype,
            granularity,
            axis=self.axis,
            group_size=self.block_size,
            symmetric=self.symmetric,
        )

    def tensor(self) -> QTensor | None:
        """The constant it dequantizes, with the integers as they are; None when not constant."""
        read = self.reader()
        return None if read is None else read()

    def reader(self) -> Callable[[], QTensor] | None:
        """What gives :meth:`tensor` anew at each call, whatever becomes of the node."""
        value = self.node.inputs[0]
        if value is None or value.is_graph_input():
            return None
        integers, spec = ir.convenience.get_const_tensor(value), self.spec()
        if integers is None:
            return None
        shape = [1] * len(integers.shape)
        if self.axis is not None and self.block_size is None:
            shape[self.axis] = -1
        elif self.axis is not None:
            shape = list(self.scale.shape)

        def read() -> QTensor:
            q = integers.numpy()
            if self.dtype.bitwidth < 8:  # elements of their own, which numpy cannot compute with
                q = q.astype(np.int8 if self.dtype.is_signed() else np.uint8)
            zeros = None if not self.zero_point.any() else self.zero_point.reshape(shape)
            return QTensor(q, self.scale.reshape(shape), zeros, spec)

        return read


class AdoptedWeights(Mapping[tuple[str, int], QTensor]):
    """Weights by node and input index, read from the model's constants when they are asked for."""

    def __init__(self) -> None:
        """Without any."""
        self._read: dict[tuple[str, int], Callable[[], QTensor]] = {}

    def add(self, node: str, index: int, read: Callable[[], QTensor]) -> None:
        """Add the weight that ``read`` gives."""
        self._read[node, index] = read

    def __getitem__(self, key: tuple[str, int]) -> QTensor:
        return self._read[key]()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def same(a: Stored | None, b: Stored | None) -> bool:
    """Whether two nodes store with the very same type, scale and zero point."""
    return (
        a is not None
        and b is not None
        and a.dtype is b.dtype
        and (a.axis, a.block_size) == (b.axis, b.block_size)
        and np.array_equal(a.scale, b.scale)
        and np.array_equal(a.zero_point, b.zero_point)
    )

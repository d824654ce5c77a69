"""Read the integers of weight-only layers back from the constants of an artifact."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.ir.provenance import origins
from qcompiler.numerics.nbits import NBitsLayout, join_planes, nbits_layout
from qcompiler.numerics.packing import unpack_bits
from qcompiler.schemes import QSpec

__all__ = ["KernelWeight", "constants_by_origin", "kernel_nodes"]

_UNPACK_DOMAIN = "qcompiler"  # of functions that join planes when the model is loaded
_DATA, _SCALE, _ZERO_POINT, _BIAS = 1, 2, 3, 5


@dataclasses.dataclass(frozen=True, slots=True)
class KernelWeight:
    """Where the rounded weight of one layer is.

    Attributes:
        node: The MatMulNBits, or the MatMul behind a DequantizeLinear.
        spec: Spec of the weight.
        columns: First column of the node's weight that is this layer's, and the one behind the
            last: layers that read one input may share a kernel.
    """

    node: ir.Node
    spec: QSpec
    columns: tuple[int, int]

    def codes(self) -> npt.NDArray[np.uint8]:
        """``[K, N]``, 0 to 2^bits - 1."""
        if self._dequantize is not None:
            return self._unsigned(self._dequantize.inputs[0])
        data = _container(self.node.inputs[_DATA], self._layout)
        rows = data.reshape(data.shape[0], self._layout.blocks(self.inputs), -1)
        part = rows[slice(*self.columns)]
        codes = unpack_bits(part, self._layout.bits, self._layout.block_size)
        return codes.reshape(len(part), -1)[:, : self.inputs].T

    def scale(self) -> npt.NDArray[np.float32]:
        """``[groups, N]``."""
        if self._dequantize is not None:
            found = _first_constant(self._dequantize.inputs[1])
            return _rows(found.astype(np.float32))[:, slice(*self.columns)]
        return _first_constant(self.node.inputs[_SCALE]).astype(np.float32)[slice(*self.columns)].T

    def zero_point(self) -> npt.NDArray[np.uint8]:
        """``[groups, N]``."""
        if self._dequantize is not None:
            return self._unsigned(self._dequantize.inputs[2])
        if self.spec.symmetric:
            return np.full(self.scale().shape, self._layout.zero, np.uint8)
        stored = _first_constant(self.node.inputs[_ZERO_POINT])
        blocks = self._layout.blocks(self.inputs)
        packed = stored.reshape(self.node.attributes.get_int("N", 0), -1)[slice(*self.columns)]
        zeros = unpack_bits(packed, self._layout.bits, blocks)
        return zeros[:, :: self._layout.blocks_per_scale or blocks].T

    def has_integer_zero_points(self) -> bool:
        """Whether zero points are integers of the kernel; floats are made up for behind it."""
        if self.spec.symmetric or self._dequantize is not None:
            return True
        value = self.node.inputs[_ZERO_POINT] if len(self.node.inputs) > _ZERO_POINT else None
        found = constant(_stored(value))
        return found is not None and found.dtype == np.uint8

    @property
    def inputs(self) -> int:
        """K."""
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)`` of all that the node multiplies with."""
        if self._dequantize is None:
            attributes = self.node.attributes
            return attributes.get_int("K", 0), attributes.get_int("N", 0)
        shape = self._dequantize.outputs[0].shape
        assert shape is not None, "a weight has a shape"
        return int(shape[0]), int(shape[1])  # type: ignore[arg-type]

    @property
    def _dequantize(self) -> ir.Node | None:
        weight = self.node.inputs[1]
        return weight.producer() if self.node.op_type == "MatMul" and weight is not None else None

    @property
    def _layout(self) -> NBitsLayout:
        layout = nbits_layout(self.spec, self.inputs)
        assert isinstance(layout, NBitsLayout), "the kernel took the weight"
        return layout

    def _unsigned(self, value: ir.Value | None) -> npt.NDArray[np.uint8]:
        shift = 1 << (self.spec.width - 1) if self.spec.is_signed else 0
        numbers = _first_constant(value).astype(np.int16) + shift
        return _rows(numbers.astype(np.uint8))[:, slice(*self.columns)]

    def bias(self) -> npt.NDArray[np.float32] | None:
        """What the kernel itself adds, ``[N]``."""
        inputs = self.node.inputs
        value = inputs[_BIAS] if self.node.op_type != "MatMul" and len(inputs) > _BIAS else None
        found = constant(_stored(value))
        return None if found is None else found[slice(*self.columns)]

    def factor(self) -> str | None:
        """The operator in front that the layer of the user's model does not have, or None."""
        source = self.node.inputs[0]
        before = None if source is None else source.producer()
        if before is None or before.op_type not in ("Mul", "Div", "Gather"):
            return None
        sizes = [x.size for x in map(constant, before.inputs) if x is not None]
        return before.op_type if self.inputs in sizes else None


def kernel_nodes(graph: ir.Graph) -> dict[str, tuple[ir.Node, tuple[str, ...]]]:
    """Weight-only products by each of the user's nodes that they compute, with all of those."""
    found: dict[str, tuple[ir.Node, tuple[str, ...]]] = {}
    for node in graph.all_nodes():
        if node.op_type not in ("MatMulNBits", "MatMul"):
            continue
        weight = node.inputs[1].producer() if node.inputs[1] is not None else None
        if node.op_type == "MatMul" and (weight is None or weight.op_type != "DequantizeLinear"):
            continue
        names = origins(node)
        for name in names:
            found.setdefault(name, (node, names))
    return found


def constants_by_origin(graph: ir.Graph) -> dict[str, list[ir.Value]]:
    """Constant inputs of all nodes that stand for each of the user's nodes."""
    found: dict[str, list[ir.Value]] = {}
    for node in graph.all_nodes():
        if node.op_type == "MatMulIntegerToFloat":  # prompts read a copy of other products' weights
            continue
        values = [
            v for v in map(_stored, node.inputs) if v is not None and v.const_value is not None
        ]
        for name in origins(node):
            found.setdefault(name, []).extend(values)
    return found


def _container(value: ir.Value | None, layout: NBitsLayout) -> npt.NDArray[np.uint8]:
    """Bytes of the kernel's container, joined from the planes of the file."""
    value = _stored(value)
    found = constant(value)
    if found is not None:
        return found
    maker = None if value is None else value.producer()
    assert maker is not None, "data of a kernel is constant, or made of constants"
    assert maker.domain == _UNPACK_DOMAIN, "planes are joined by a function"
    planes = [_first_constant(plane) for plane in maker.inputs[: len(layout.planes)]]
    return join_planes(planes, layout.bits, layout.planes)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """What a branch's own constant is a copy of; other values are themselves."""
    maker = None if value is None else value.producer()
    return maker.inputs[0] if maker is not None and maker.op_type == "Identity" else value


def _rows(found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Parameters of whole columns as one row."""
    return found if found.ndim == 2 else found[None]


def _first_constant(value: ir.Value | None) -> npt.NDArray[Any]:
    """The constant that nodes which only repeat and reshape it make ``value`` of."""
    while value is not None:
        found = constant(value)
        if found is not None:
            return found
        maker = value.producer()
        value = None if maker is None else maker.inputs[0]
    raise AssertionError("parameters of a weight are constant")

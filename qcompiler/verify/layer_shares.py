"""How much of a layer's error comes from its weight, and how much from its activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.ir.walk import LINEAR
from qcompiler.numerics.affine import affine_params, dequantize, quantize
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

__all__ = ["Shares", "floats_of"]

Array = npt.NDArray[np.floating[Any]]

_PLAIN = SessionSettings("disable")
# Columns of weights differ from the float ones by rounding alone up to here; above, something was
# folded into them (SmoothQuant's factors), which the input carries the inverse of.
_ROUNDING = 0.05
_FLOAT_NOISE = 1e-12  # relative power: two orders of summing differ by as much
_LARGEST = {ir.DataType.FLOAT8E4M3FN: 448, ir.DataType.FLOAT8E5M2: 57344}


@dataclasses.dataclass
class Shares:
    """One layer, recomputed with only its weight rounded and with only its activation rounded.

    Attributes:
        node: The float layer.
        weight: Its weight.
        rounded: What the quantized weight stands for, in the float layer's scaling.
        factors: Per input channel, what the float activation is divided by before it is rounded;
            None where nothing was folded.
        scale: Scale of the static activation, None where it is rounded at run time.
        zero_point: Its zero point.
        limits: Smallest and largest integer, or 8-bit float.
        is_product: It is ``x @ weight``, a MatMul or a Gemm that was spelled as one.
        float8: The type, where the activation is rounded to 8-bit floats.
    """

    node: ir.Node
    weight: Array
    rounded: Array
    factors: Array | None
    scale: npt.NDArray[np.float32] | None
    zero_point: npt.NDArray[np.int32] | None
    limits: tuple[int, int]
    is_product: bool
    float8: ir.DataType | None = None
    weight_noise: float = 0.0
    activation_noise: float = 0.0
    signal: float = 0.0
    _session: Any = None

    @classmethod
    def of(cls, node: ir.Node, other: ir.Node) -> Shares | None:
        """The layer and its quantized form; None where they cannot be taken apart."""
        if node.op_type not in LINEAR or node.domain:
            return None
        weight, is_product = constant(node.inputs[1]), other.op_type == "MatMul"
        if other.op_type != node.op_type:
            weight = _as_product(node, weight) if is_product else None
        rounded = floats_of(other.inputs[1])
        if weight is None or rounded is None or weight.shape != rounded.shape:
            return None
        weight = weight.astype(np.float32)
        factors = _folded(weight, rounded) if is_product and weight.ndim == 2 else None
        if factors is not None:
            rounded = rounded / factors[:, None]
        found = cls(node, weight, rounded, factors, None, None, (0, 0), is_product)
        dq = _dequantize(other.inputs[0])
        return found if dq is None else found._rounding_by(dq)

    def _rounding_by(self, dq: ir.Node) -> Shares | None:
        """The same, its activation out of ``dq``; None where that is not understood."""
        source = dq.inputs[0]
        maker = None if source is None else source.producer()
        dtype = source.dtype if source is not None else None
        if dtype is None:
            return None
        if dtype in _LARGEST:
            self.limits, self.float8 = (-_LARGEST[dtype], _LARGEST[dtype]), dtype
        elif dtype.is_floating_point():
            return None
        else:
            low = -(1 << (dtype.bitwidth - 1)) if dtype.is_signed() else 0
            self.limits = (low, low + (1 << dtype.bitwidth) - 1)
        if maker is not None and maker.op_type == "DynamicQuantizeLinear":
            return self
        scale = constant(dq.inputs[1])
        zeros = constant(dq.inputs[2] if len(dq.inputs) > 2 else None)
        if scale is None or scale.size != 1:
            return None
        self.scale = scale.astype(np.float32).reshape(())
        self.zero_point = np.zeros((), np.int32)
        if zeros is not None and self.float8 is None:
            self.zero_point = zeros.astype(np.int32).reshape(())
        return self

    @property
    def input(self) -> str:
        """Name of the float activation."""
        value = self.node.inputs[0]
        assert value is not None
        return str(value.name)

    def add(self, x: Array) -> None:
        """Take one more float activation into the sums."""
        exact = self._compute(x, self.weight)
        self.signal += _power(exact)
        self.weight_noise += _power(exact - self._compute(x, self.rounded))
        if self.limits != (0, 0):
            self.activation_noise += _power(exact - self._compute(self._round(x), self.weight))

    def close(self) -> None:
        """Let go of the session and of the constants."""
        self._session = None
        self.weight = self.rounded = np.zeros(0, np.float32)

    @property
    def weight_share(self) -> float | None:
        """Power of the weight's error in that of both; None where there is but float noise."""
        both = self.weight_noise + self.activation_noise
        return self.weight_noise / both if both > _FLOAT_NOISE * self.signal else None

    def _round(self, x: Array) -> Array:
        factors = None if self.factors is None else self.factors.astype(np.float32)
        z: Array = np.asarray(x, np.float32)
        if factors is not None:
            z = np.divide(z, factors)
        scale, zero = self.scale, self.zero_point
        if scale is None or zero is None:
            low, high = z.min(initial=0.0), z.max(initial=0.0)
            found = affine_params(np.asarray(low), np.asarray(high), *self.limits)
            scale, zero = np.asarray(found[0], np.float32), np.asarray(found[1], np.int32)
        if self.float8 is not None:
            steps = np.clip(z / scale, *self.limits).astype(self.float8.numpy())
            z = steps.astype(np.float32) * scale
        else:
            z = dequantize(quantize(z, scale, zero, *self.limits), scale, zero)
        return z if factors is None else np.multiply(z, factors)

    def _compute(self, x: Array, w: Array) -> npt.NDArray[np.float64]:
        if self.is_product:
            product: npt.NDArray[np.float64] = (np.asarray(x, np.float32) @ w).astype(np.float64)
            return product
        if self._session is None:
            self._session = open_session(_one_node(self.node, x.ndim, w.ndim), settings=_PLAIN)
        feed: Mapping[str, Any] = {"x": np.asarray(x, np.float32), "w": w}
        return run(self._session, feed)["y"].astype(np.float64)


def _one_node(node: ir.Node, x_rank: int, w_rank: int) -> ir.Model:
    def value(name: str, rank: int | None) -> ir.Value:
        shape = None if rank is None else ir.Shape([None] * rank)
        return ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))

    x, w = value("x", x_rank), value("w", w_rank)
    y = value("y", None)
    attributes = [attr for attr in node.attributes.values() if isinstance(attr, ir.Attr)]
    layer = ir.Node("", node.op_type, [x, w], attributes, outputs=[y], name="layer")
    assert isinstance(node.graph, ir.Graph)
    opset = node.graph.opset_imports.get("", 17)
    graph = ir.Graph([x, w], [y], nodes=[layer], opset_imports={"": opset}, name="layer")
    return ir.Model(graph, ir_version=10)


def _as_product(node: ir.Node, weight: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """The weight of a Gemm as a MatMul has it; None where it is no plain product."""
    plain = node.attributes.get_float("alpha", 1.0) == 1.0
    plain = plain and node.attributes.get_int("transA", 0) == 0
    if node.op_type != "Gemm" or weight is None or not plain:
        return None
    return weight.T if node.attributes.get_int("transB", 0) else weight


def _folded(weight: Array, rounded: Array) -> Array | None:
    """Factors per input channel by which the rounded weight is larger, where there are any.

    Least squares over the outputs of each channel, which averages rounding out.
    """
    w, r = weight.astype(np.float64), rounded.astype(np.float64)
    power = (w * w).sum(axis=1)
    factors = np.where(power > 0.0, (w * r).sum(axis=1) / np.where(power > 0.0, power, 1.0), 1.0)
    if (factors <= 0.0).any() or np.abs(factors - 1.0).max(initial=0.0) < _ROUNDING:
        return None
    return factors


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    producer = None if value is None else value.producer()
    found = producer is not None and producer.op_type == "DequantizeLinear"
    return producer if found else None


def floats_of(value: ir.Value | None) -> Array | None:
    """A weight as floats: as it is, or what the runtime makes of its DequantizeLinear."""
    array = constant(value)
    if array is not None:
        return array.astype(np.float32) if array.dtype.kind == "f" else None
    dq = _dequantize(value)
    if dq is None or any(constant(item) is None for item in dq.inputs if item is not None):
        return None
    assert isinstance(dq.graph, ir.Graph)
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    copies = [
        None
        if item is None
        else ir.Value(
            name=f"i{index}", const_value=item.const_value, shape=item.shape, type=item.type
        )
        for index, item in enumerate(dq.inputs)
    ]
    attributes = [attr for attr in dq.attributes.values() if isinstance(attr, ir.Attr)]
    node = ir.Node("", "DequantizeLinear", copies, attributes, outputs=[y], name="dq")
    graph = ir.Graph(
        [],
        [y],
        nodes=[node],
        initializers=[item for item in copies if item is not None],
        opset_imports={"": dq.graph.opset_imports.get("", 17)},
        name="weight",
    )
    found: Array = run(open_session(ir.Model(graph, ir_version=10), settings=_PLAIN), {})["y"]
    return found


def _power(x: npt.NDArray[np.float64]) -> float:
    flat = x.reshape(-1)
    return float(flat @ flat)

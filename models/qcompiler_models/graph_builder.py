"""Write a graph node by node, with seeded weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["GraphBuilder", "graph_input", "graph_output"]

_Array = npt.NDArray[np.generic]
_Attribute = int | float | str | Sequence[int] | ir.Graph | ir.TensorProtocol

_IR_VERSION = 10  # the newest that every ONNX Runtime since 1.20 reads


class GraphBuilder:
    """Collects the nodes and weights of one graph. Value names count up by operator."""

    def __init__(self, seed: int, prefix: str = "") -> None:
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.rng = np.random.default_rng(seed)
        self.prefix = prefix

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: _Attribute) -> ir.Value:
        """Output of a new node, named after its operator and its place in the graph."""
        name = f"{self.prefix}{op_type.lower()}_{len(self.nodes)}"
        output = ir.Value(name=name)
        self.nodes.append(
            ir.node(op_type, inputs, attributes, outputs=[output], name=f"{name}_node")
        )
        return output

    def constant(self, name: str, array: npt.ArrayLike) -> ir.Value:
        """An initializer."""
        array = np.asarray(array)
        tensor = ir.tensor(array, name=self.prefix + name)
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.weights.append(value)
        return value

    def weight(self, name: str, *shape: int, fan_in: int, dtype: str = "float32") -> ir.Value:
        """A normal initializer that keeps the variance of what it multiplies."""
        return self.constant(name, self.normal(*shape, fan_in=fan_in, dtype=dtype))

    def normal(self, *shape: int, fan_in: int, dtype: str = "float32") -> _Array:
        """The numbers ``weight`` draws."""
        return np.asarray(self.rng.standard_normal(shape) / np.sqrt(fan_in), dtype)

    def bias(self, name: str, width: int, dtype: str = "float32") -> ir.Value:
        """A small normal vector."""
        return self.constant(name, (self.rng.standard_normal(width) * 0.1).astype(dtype))

    def linear(
        self, x: ir.Value, name: str, inputs: int, outputs: int, dtype: str = "float32"
    ) -> ir.Value:
        """``x @ w + b`` as MatMul and Add."""
        w = self.weight(f"{name}.weight", inputs, outputs, fan_in=inputs, dtype=dtype)
        b = self.bias(f"{name}.bias", outputs, dtype)
        return self.op("Add", self.op("MatMul", x, w), b)

    def conv_norm(
        self, x: ir.Value, name: str, shape: tuple[int, int, int], groups: int = 1, stride: int = 1
    ) -> ir.Value:
        """Convolution ``[out, in / groups, k, k]`` without bias, then batch norm."""
        out, within, k = shape
        w = self.weight(f"{name}.weight", out, within, k, k, fan_in=within * k * k)
        pads, strides = [k // 2] * 4, [stride, stride]
        y = self.op("Conv", x, w, group=groups, pads=pads, strides=strides, kernel_shape=[k, k])
        return self.op(
            "BatchNormalization",
            y,
            self.constant(f"{name}.gamma", self.rng.uniform(0.5, 1.5, out).astype("float32")),
            self.bias(f"{name}.beta", out),
            self.bias(f"{name}.mean", out),
            self.constant(f"{name}.var", self.rng.uniform(0.5, 2.0, out).astype("float32")),
            epsilon=1e-5,
        )

    def graph(
        self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], opset: int
    ) -> ir.Graph:
        """The graph of everything built so far."""
        return ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": opset},
            name=name,
        )

    def model(
        self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], opset: int
    ) -> ir.Model:
        """The same as a model."""
        graph = self.graph(name, inputs, outputs, opset)
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="qcompiler_models.tiny")


def graph_input(
    name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    """An input; axes may have names."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def graph_output(
    value: ir.Value, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    """``value`` as an output: with its own name, shape and type."""
    value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
    return value

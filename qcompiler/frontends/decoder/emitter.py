"""Nodes with names, types, shapes and module paths, appended one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.provenance import set_module

__all__ = ["IR_VERSION", "MICROSOFT", "OPSET", "Dims", "Emitter", "input_value"]

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 11  # of the same release
MICROSOFT = "com.microsoft"

Dims = tuple[int | str, ...]


class Emitter:
    """Collects the nodes and constants of one graph, in topological order."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: Dims,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        module: str = "",
        output: str = "",
        extra: Sequence[ir.Value] = (),
    ) -> ir.Value:
        """The first output of a new node.

        Args:
            op_type: Operator.
            inputs: Its inputs.
            name: Of the node, and of the output where ``output`` does not say another.
            shape: Of the output.
            dtype: Of the output.
            domain: Of the operator.
            attributes: Its attributes.
            module: Path of the module that it belongs to.
            output: Name of the output.
            extra: Values that are its further outputs.
        """
        first = input_value(output or name, dtype, shape)
        node = ir.node(
            op_type,
            inputs,
            dict(attributes or {}),
            domain=domain,
            outputs=[first, *extra],
            name=name,
        )
        if module:
            set_module(node, module)
        self.nodes.append(node)
        return first

    def constant(self, name: str, tensor: npt.NDArray[Any] | ir.TensorProtocol) -> ir.Value:
        """An initializer; one that exists under the name is given again."""
        if name not in self.constants:
            if isinstance(tensor, np.ndarray):
                tensor = ir.tensor(tensor, name=name)
            value = input_value(name, tensor.dtype, tuple(tensor.shape.numpy()))
            value.const_value = tensor
            self.constants[name] = value
        return self.constants[name]

    def integers(self, numbers: int | list[int]) -> ir.Value:
        """An int64 constant, named after its numbers."""
        array = np.asarray(numbers, np.int64)
        text = "_".join(map(str, array.reshape(-1)))
        return self.constant(f"int64_{array.ndim}d_{text}", array)

    def graph(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str) -> ir.Graph:
        """Everything so far as a graph."""
        return ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.constants.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=name,
        )


def input_value(name: str, dtype: ir.DataType, shape: Dims) -> ir.Value:
    """A value that no node gives: an input of a graph, or a further output of a node to come."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

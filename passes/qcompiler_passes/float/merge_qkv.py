"""One matrix product for several that read the same input."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant, has_one_use, replace
from qcompiler.ir.provenance import inherit
from qcompiler.patterns.rule import remove_unread, stamp
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["MergeQkv"]

_SINCE = 13  # opset in which Split takes its sizes as an input


@dataclasses.dataclass(frozen=True, slots=True)
class _Linear:
    """``x @ weight + bias``."""

    matmul: ir.Node
    add: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None

    @property
    def output(self) -> ir.Value:
        return (self.add or self.matmul).outputs[0]


def _linear(node: ir.Node) -> _Linear | None:
    """The linear layer that begins at ``node``, if its weight is a private constant [K, N]."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer():
        return None
    if weight.is_graph_input() or len(weight.const_value.shape) != 2 or not has_one_use(weight):
        return None
    add, bias = _bias(node, int(weight.const_value.shape.numpy()[1]))
    return _Linear(node, add, weight, bias)


def _bias(matmul: ir.Node, width: int) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a constant row that alone reads the product, and the row."""
    product = matmul.outputs[0]
    if not has_one_use(product):
        return None, None
    add = next(iter(product.uses())).node
    if add.op_type != "Add" or add.domain != "" or add.graph is not matmul.graph:
        return None, None
    row = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    if row is None or row.const_value is None or row.is_graph_input():
        return None, None
    return (add, row) if tuple(row.const_value.shape) == (width,) else (None, None)


def _groups(graph: ir.Graph) -> list[list[_Linear]]:
    """Linear layers by the value they read, in graph order; those that read it alone left out."""
    found: dict[ir.Value, list[_Linear]] = {}
    for node in graph:
        linear = _linear(node)
        source = node.inputs[0] if node.inputs else None
        if linear is not None and source is not None:
            found.setdefault(source, []).append(linear)
    return [group for group in found.values() if len(group) > 1 and _alike(group)]


def _alike(group: list[_Linear]) -> bool:
    tensors = [item.weight.const_value for item in group]
    return len({(tensor.dtype, tensor.shape[0]) for tensor in tensors if tensor is not None}) == 1


def _array(value: ir.Value) -> npt.NDArray[Any]:
    array = constant(value)
    assert array is not None, "only constants are collected"
    return array


def _merge(graph: ir.Graph, group: list[_Linear], pass_name: str) -> None:
    first = group[0].matmul
    tape = Tape(graph, f"{first.name}/merged")
    weights = [_array(item.weight) for item in group]
    value = tape.op("MatMul", first.inputs[0], np.concatenate(weights, axis=1))
    if any(item.bias is not None for item in group):
        biases = [
            np.zeros(weight.shape[1], weight.dtype) if item.bias is None else _array(item.bias)
            for item, weight in zip(group, weights, strict=True)
        ]
        value = tape.op("Add", value, np.concatenate(biases))
    sizes = np.array([weight.shape[1] for weight in weights], np.int64)
    parts = tape.op("Split", value, sizes, axis=-1, outputs=len(group))
    old = [node for item in group for node in (item.matmul, item.add) if node is not None]
    constants = [value for node in old for value in node.inputs]
    # the last of the old nodes may stand behind readers of the first, so not where replace() would
    graph.insert_before(first, tape.nodes)
    inherit(tape.nodes, old)
    stamp(tape.nodes, pass_name)
    replace(graph, old, [], {item.output: part for item, part in zip(group, parts, strict=True)})
    remove_unread(graph, constants)


@dataclasses.dataclass(frozen=True)
class MergeQkv(Pass):
    """Merge linear layers that read one value (query, key and value; gate and up) into one.

    Given:   %q = Add(MatMul(%x, %wq), %bq); %k, %v likewise
    Result:  %m = Add(MatMul(%x, [%wq %wk %wv]), [%bq %bk %bv]); %q, %k, %v = Split(%m) axis=-1

    Weights that something else reads too stay as they are. Only the main graph. Off by default: on
    ONNX Runtime's CPU kernels the copy in Split costs what the larger product gains.

    Attributes:
        enabled: Whether to merge.
    """

    name: ClassVar[str] = "merge-qkv"
    phase: ClassVar[Phase] = Phase.FLOAT
    enabled: bool = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Merge every group there is."""
        if not self.enabled or (model.opset_imports.get("") or 0) < _SINCE:
            return PassResult(False)
        groups = _groups(model.graph)
        for group in groups:
            _merge(model.graph, group, self.name)
        return PassResult(bool(groups))

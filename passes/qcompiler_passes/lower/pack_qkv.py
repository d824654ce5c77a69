"""One product for query, key and value, where attention takes them in one tensor."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, has_one_use, remove_dead, replace
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.targets.schema import Form
from qcompiler_passes.planned import KERNEL

__all__ = ["PackQkv"]

_MICROSOFT = "com.microsoft"
_DATA, _SCALE, _ZERO_POINT, _GROUP_INDEX, _BIAS = range(1, 6)  # inputs of MatMulNBits


@dataclasses.dataclass(frozen=True, slots=True)
class _Product:
    """``MatMulNBits(x, ...)``, perhaps behind it an Add of a constant row."""

    node: ir.Node
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def nodes(self) -> list[ir.Node]:
        return [self.node] if self.add is None else [self.node, self.add]

    @property
    def width(self) -> int:
        return self.node.attributes["N"].as_int()

    def input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None


@dataclasses.dataclass(frozen=True)
class PackQkv(Pass):
    """Join the rounded weights of query, key and value into one MatMulNBits.

    Columns of a product do not depend on each other, so the numbers stay what they are; the runtime
    quantizes the activation once instead of three times, and starts its threads once.

    Given:  ``%q, %k, %v = MatMulNBits(%x, ...)``, ``%y = GroupQueryAttention(%q, %k, %v, ...)``
    Result: ``%qkv = MatMulNBits(%x, ...)``, ``%y = GroupQueryAttention(%qkv, _, _, ...)``

    Products of other bits, groups or zero points than their neighbours stay apart.
    """

    name: ClassVar[str] = "pack-qkv"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Every attention of the main graph, in form ``ort``."""
        if state.form is not Form.ORT:
            return PassResult(False)
        modified = False
        for node in list(model.graph):
            if node.op_type == "GroupQueryAttention" and node.domain == _MICROSOFT:
                modified |= _pack(model.graph, node)
        if modified:
            remove_dead(model)
        return PassResult(modified)


def _pack(graph: ir.Graph, attention: ir.Node) -> bool:
    parts = [_product(value) for value in attention.inputs[:3]]
    products = [part for part in parts if part is not None]
    if len(products) != 3 or len({_form(part) for part in products}) != 1:
        return False
    first = products[0].node
    tape = Tape(graph, f"{first.name}/packed")
    joined = [_join(graph, products, index) for index in (_DATA, _SCALE, _ZERO_POINT)]
    attributes = {name: attr.value for name, attr in first.attributes.items()}
    attributes["N"] = sum(part.width for part in products)
    bias = _joined_bias(products)
    behind = [] if bias is None else [None, bias]
    packed = tape.op(
        "MatMulNBits", first.inputs[0], *joined, *behind, domain=_MICROSOFT, **attributes
    )
    packed.type, packed.shape = first.outputs[0].type, _wider(first.outputs[0], attributes["N"])
    tape.nodes[0].metadata_props[KERNEL] = first.metadata_props.get(KERNEL, "")
    nodes = {node for part in products for node in part.nodes}
    old = [node for node in graph if node in nodes]
    attention.replace_input_with(1, None)
    attention.replace_input_with(2, None)
    replace(graph, old, tape.nodes, {products[0].nodes[-1].outputs[0]: packed})
    return True


def _product(value: ir.Value | None) -> _Product | None:
    """What gives the value, if attention alone reads it and all else is constant."""
    node = None if value is None or not has_one_use(value) else value.producer()
    add = bias = None
    if node is not None and node.op_type == "Add" and node.domain == "":
        add, bias = node, node.inputs[1]
        product = node.inputs[0]
        node = None if product is None or not has_one_use(product) else product.producer()
    if node is None or (node.domain, node.op_type) != (_MICROSOFT, "MatMulNBits"):
        return None
    found = _Product(node, add, bias if add is not None else _at(node, _BIAS))
    weights = [found.input(index) for index in (_DATA, _SCALE, _ZERO_POINT)]
    if found.input(_GROUP_INDEX) is not None or (add is not None and found.input(_BIAS)):
        return None
    if not all(item is None or _is_constant(item) for item in (*weights, found.bias)):
        return None
    bias_fits = found.bias is None or tuple(_tensor(found.bias).shape) == (found.width,)
    return found if bias_fits else None


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, "asked for constants only"
    return value.const_value


def _form(part: _Product) -> tuple[Any, ...]:
    """What must be the same for columns to stand in one product."""
    attributes = {name: attr.value for name, attr in part.node.attributes.items() if name != "N"}
    ranks = [
        None if value is None else (_tensor(value).dtype, len(_tensor(value).shape))
        for value in map(part.input, (_DATA, _SCALE, _ZERO_POINT))
    ]
    return part.node.inputs[0], *sorted(attributes.items()), *ranks


def _join(graph: ir.Graph, parts: list[_Product], index: int) -> ir.Value | None:
    """The constants of all parts, one behind the other, joined when they are read."""
    values = [part.input(index) for part in parts]
    tensors = [_tensor(value) for value in values if value is not None]
    if not tensors:
        return None
    dtype, rest = tensors[0].dtype, tensors[0].shape.numpy()[1:]
    rows = sum(tensor.shape.numpy()[0] for tensor in tensors)
    joined = ir.LazyTensor(
        lambda: ir.Tensor(np.concatenate([tensor.numpy() for tensor in tensors]), dtype=dtype),
        dtype,
        ir.Shape([rows, *rest]),
    )
    assert values[0] is not None, "all parts have the same inputs"
    value = add_initializer(graph, f"{values[0].name}/packed", joined)
    joined.name = value.name
    return value


def _wider(value: ir.Value, width: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape[:-1], width])


def _joined_bias(parts: list[_Product]) -> npt.NDArray[np.float32] | None:
    if all(part.bias is None for part in parts):
        return None
    return np.concatenate(
        [
            np.zeros(part.width, np.float32) if part.bias is None else _tensor(part.bias).numpy()
            for part in parts
        ]
    )

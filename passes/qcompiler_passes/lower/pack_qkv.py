"""One product for query, key and value, where attention takes them in one tensor."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, has_one_use, remove_dead, replace
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.targets.schema import Form
from qcompiler_passes.lower.joined_columns import (
    BIAS,
    DATA,
    GROUP_INDEX,
    SCALE,
    ZERO_POINT,
    form,
    input_at,
    join,
    tensor,
)
from qcompiler_passes.planned import KERNEL

__all__ = ["PackQkv"]

_MICROSOFT = "com.microsoft"


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

    @property
    def constants(self) -> list[ir.Value | None]:
        return [input_at(self.node, index) for index in (DATA, SCALE, ZERO_POINT)]


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
    if len(products) != 3 or len({form(part.node, part.constants) for part in products}) != 1:
        return False
    first = products[0].node
    tape = Tape(graph, f"{first.name}/packed")
    joined = [
        join(graph, values) for values in zip(*(part.constants for part in products), strict=True)
    ]
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
    found = _Product(node, add, bias if add is not None else input_at(node, BIAS))
    if input_at(node, GROUP_INDEX) is not None or (add is not None and input_at(node, BIAS)):
        return None
    if not all(item is None or _is_constant(item) for item in (*found.constants, found.bias)):
        return None
    bias_fits = found.bias is None or tuple(tensor(found.bias).shape) == (found.width,)
    return found if bias_fits else None


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _wider(value: ir.Value, width: int) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([*value.shape[:-1], width])


def _joined_bias(parts: list[_Product]) -> npt.NDArray[np.float32] | None:
    if all(part.bias is None for part in parts):
        return None
    return np.concatenate(
        [
            np.zeros(part.width, np.float32) if part.bias is None else tensor(part.bias).numpy()
            for part in parts
        ]
    )

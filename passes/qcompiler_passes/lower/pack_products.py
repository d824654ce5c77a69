"""One product for those that read one row, in language models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, remove_dead, replace
from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import all_graphs
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

__all__ = ["PackProducts"]

_MICROSOFT = "com.microsoft"
_CONSTANTS = (DATA, SCALE, ZERO_POINT, BIAS)


@dataclasses.dataclass(frozen=True, slots=True)
class _Product:
    """A ``MatMulNBits`` and the initializers that it reads, perhaps each through an Identity.

    Attributes:
        node: The product.
        read: Its inputs of constants; None where it has none.
        constants: The initializers that they stand for.
    """

    node: ir.Node
    read: tuple[ir.Value | None, ...]
    constants: tuple[ir.Value | None, ...]


@dataclasses.dataclass(frozen=True)
class PackProducts(Pass):
    """Join the rounded weights of layers that read one value: gate and up; query, key and value.

    The columns of a product do not depend on each other, so the numbers stay what they are. With
    one row, as each token behind a prompt has, most of a small product's time is what the runtime
    needs to round the row and to start its threads; with many rows the copies in Split are small
    beside the products. Only where tokens come one by one: in graphs with a cache.

    Given:  ``%gate = MatMulNBits(%x, %wg, ...)``, ``%up = MatMulNBits(%x, %wu, ...)``
    Result: ``%both = MatMulNBits(%x, [%wg %wu], ...)``, ``%gate, %up = Split(%both) axis=-1``

    A branch for prompts that makes weights of its own of the same constants reads a Slice of the
    whole instead. Products of other bits, groups or zero points stay apart.
    """

    name: ClassVar[str] = "pack-products"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Every graph of a model with a cache, in form ``ort``."""
        graphs = list(all_graphs(model))
        if state.form is not Form.ORT or not any(map(_has_cache, graphs)):
            return PassResult(False)
        modified = False
        for graph in graphs:
            for group in _groups(graph, model.graph):
                _pack(model.graph, graph, group)
                modified = True
        if modified:
            remove_dead(model)
        return PassResult(modified)


def _has_cache(graph: ir.Graph) -> bool:
    return any(node.op_type == "GroupQueryAttention" for node in graph)


def _groups(graph: ir.Graph, outer: ir.Graph) -> list[list[_Product]]:
    """Products of one input and one form, in graph order; single ones left out."""
    found: dict[object, list[_Product]] = {}
    for node in graph:
        product = _product(node, outer)
        if product is not None:
            found.setdefault(form(node, product.constants), []).append(product)
    return [group for group in found.values() if len(group) > 1]


def _product(node: ir.Node, outer: ir.Graph) -> _Product | None:
    if (node.domain, node.op_type) != (_MICROSOFT, "MatMulNBits"):
        return None
    if input_at(node, GROUP_INDEX) is not None:
        return None
    read = tuple(input_at(node, index) for index in _CONSTANTS)
    constants = tuple(None if value is None else _source(value) for value in read)
    for value, constant in zip(read, constants, strict=True):
        if value is not None and (constant is None or not _is_free(constant, node, outer)):
            return None
    return _Product(node, read, constants)


def _source(value: ir.Value) -> ir.Value | None:
    """The initializer that a value is, or is another name for."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Identity" and producer.domain == "":
        value = producer.inputs[0] or value
    if not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return value


def _is_free(constant: ir.Value, node: ir.Node, outer: ir.Graph) -> bool:
    """Whether nothing but the product reads the constant, bodies aside."""
    readers = {use.node for use in constant.uses()} - {node}
    return not constant.is_graph_output() and all(reader.graph is not outer for reader in readers)


def _pack(outer: ir.Graph, graph: ir.Graph, group: list[_Product]) -> None:
    first = group[0].node
    tape = Tape(outer, f"{first.name}/packed")

    def own(value: ir.Value) -> ir.Value:
        """The constant itself; in a body a copy, which folding makes (:mod:`.own_constants`)."""
        return value if graph is outer else tape.op("Identity", value)

    inputs: list[ir.Value | None] = [first.inputs[0], None, None, None, None, None]
    for place, index in enumerate(_CONSTANTS):
        parts = [product.constants[place] for product in group]
        joined = join(outer, parts)
        if joined is not None:
            _slice_elsewhere(outer, parts, joined, group)
            inputs[index] = own(joined)
    widths = [product.node.attributes["N"].as_int() for product in group]
    attributes = {name: attr.value for name, attr in first.attributes.items()}
    attributes["N"] = sum(widths)
    while inputs[-1] is None:
        inputs.pop()
    y = tape.op("MatMulNBits", *inputs, domain=_MICROSOFT, **attributes)
    shape = first.outputs[0].shape
    y.type = first.outputs[0].type
    y.shape = None if shape is None else ir.Shape([*shape[:-1], attributes["N"]])
    tape.nodes[-1].metadata_props[KERNEL] = first.metadata_props.get(KERNEL, "")
    sizes = add_initializer(outer, f"{first.name}/widths", np.array(widths, np.int64))
    parts = tape.op("Split", y, own(sizes), axis=-1, outputs=len(group))
    old = [product.node for product in group]
    # readers of the first may stand before the last, so not where replace() would
    graph.insert_before(first, tape.nodes)
    inherit(tape.nodes, old)
    results = [node.outputs[0] for node in old]
    replace(graph, old, [], dict(zip(results, parts, strict=True)))


def _slice_elsewhere(
    graph: ir.Graph,
    parts: Sequence[ir.Value | None],
    joined: ir.Value,
    group: Sequence[_Product],
) -> None:
    """Let bodies that read the parts for something else read a piece of the whole.

    Args:
        graph: Has the constants.
        parts: What was joined.
        joined: All of it.
        group: What the whole is for; these products, and what they read through, are left.
    """
    own: set[ir.Node | None] = {product.node for product in group}
    own |= {read.producer() for product in group for read in product.read if read is not None}
    begin = 0
    for part in parts:
        assert part is not None, "products of one form have the same inputs"
        end = begin + int(tensor(part).shape.numpy()[0])
        for use in list(part.uses()):
            reader = use.node
            if reader in own:
                continue
            assert isinstance(reader.graph, ir.Graph), "a body reads it"
            tape = Tape(graph, f"{reader.name}/piece")
            bounds = (np.array([place], np.int64) for place in (begin, end, 0))
            piece = tape.op("Slice", joined, *bounds)
            piece.type, piece.shape = part.type, part.shape
            inherit(tape.nodes, [reader])
            reader.graph.insert_before(reader, tape.nodes)
            reader.replace_input_with(use.idx, piece)
        begin = end

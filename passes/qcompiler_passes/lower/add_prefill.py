"""A second path through a language model, in int8, for prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import Tape, add_initializer, constant, fresh_name, import_domain
from qcompiler.ir.provenance import inherit
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form
from qcompiler_passes.apply.weight_functions import define_functions
from qcompiler_passes.lower.int8_products import (
    ByteWeight,
    Rows,
    byte_product,
    byte_weight,
    quantized_rows,
    stored_weight,
)
from qcompiler_passes.lower.own_constants import own_constants
from qcompiler_passes.lower.prefill_factors import PrefillFactors, find_factors
from qcompiler_passes.lower.to_ort import UNPACKING_SETTINGS

__all__ = ["PREFILL_SETTINGS", "AddPrefill"]

Floats = npt.NDArray[np.float32]

# The int8 weights are made by constant folding, of DequantizeLinear as well. So are the branches'
# own constants: Identity nodes, which nothing else may take away.
_UNWANTED = "optimization.disable_specified_optimizers"
PREFILL_SETTINGS = SessionSettings(
    level="basic",
    entries={
        _UNWANTED: f"{UNPACKING_SETTINGS.entries[_UNWANTED]};EliminateIdentity",
        "session.disable_quant_qdq": "1",
    },
)

# From so many tokens of a text on int8 products are the faster ones; fewer are computed as one is.
_SHORTEST = 16
_OPSET = 21  # DequantizeLinear takes blocks
_PREFIX = "prefill/"
_BIAS = 5  # input of MatMulNBits


@dataclasses.dataclass(frozen=True)
class AddPrefill(Pass):
    """Let prompts take int8 products by row, and single tokens the ones of few bits.

    ``MatMulNBits`` is made for one row: with hundreds it is slower than float. The layers are put
    into an If on the length of ``input_ids``; one branch has them as they were, the other has
    ``MatMulIntegerToFloat`` in place of each ``MatMulNBits``. Its weights are made of those of few
    bits: when the model is loaded, or now, for the file to hold them.

    Given::

        %y = MatMulNBits(%x, %weight, %scale)

    Result::

        %long = GreaterOrEqual(Shape(%input_ids)[1], 16)
        %y = If(%long)
            then: %y1 = MatMulIntegerToFloat(Quantize(%x), %int8, %row_scale, %column_scale, 128)
            else: %y2 = MatMulNBits(%x, %weight, %scale)

    With calibration data the channels of activations are levelled, on the int8 branch alone, by
    gains of normalizations and scales of columns of its own (:mod:`.prefill_factors`).

    A head that reads one position of each text stays behind the If. Works on form ``ort``, and only
    where the recipe says ``prefill``.
    """

    name: ClassVar[str] = "add-prefill"
    phase: ClassVar[Phase] = Phase.LOWER
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Branch around the layers; QC504 when there is nothing to branch around."""
        if state.recipe.prefill is None:
            return PassResult(modified=False)
        graph = model.graph
        ids = next((value for value in graph.inputs if value.name == "input_ids"), None)
        products = {node for node in graph if _is_product(node)}
        reason = _reason(state, graph, ids, products)
        if reason or ids is None:
            return PassResult(False, (Diagnostic(Code.NO_PREFILL, "", reason),))
        import_domain(model, "com.microsoft")
        make = stored_weight if state.recipe.prefill == "int8-stored" else byte_weight
        factors = find_factors(model, products, state)
        weights = _branch(graph, ids, products, make, factors or PrefillFactors())
        define_functions(model)
        if state.session.level in ("disable", "basic"):
            state.session = PREFILL_SETTINGS
        return PassResult(True, (_cost(weights, factors),))


def _reason(
    state: State, graph: ir.Graph, ids: ir.Value | None, products: Iterable[ir.Node]
) -> str:
    if state.form is not Form.ORT:
        return f"form {state.form.value} has no kernel of few bits, wanted form ort"
    if ids is None or ids.shape is None or len(ids.shape) != 2:
        return "the model has no input input_ids [batch, sequence]"
    if not products:
        return "no product of more than one row has weights of few bits"
    opset = graph.opset_imports.get("", 0)
    return f"the model has opset {opset}, wanted {_OPSET} or newer" if opset < _OPSET else ""


def _is_product(node: ir.Node) -> bool:
    """Whether prompts have many rows in it, and its weight is of whole numbers and float32."""
    if (node.domain, node.op_type) != ("com.microsoft", "MatMulNBits"):
        return False
    x, _, scale, zero_point, group_index = (*node.inputs[:5], None, None)[:5]
    if x is None or scale is None or group_index is not None:
        return False
    if scale.dtype not in (None, ir.DataType.FLOAT):
        return False
    if zero_point is not None and zero_point.dtype not in (None, ir.DataType.UINT8):
        return False
    return x.shape is None or len(x.shape) < 2 or x.shape[-2] != 1


def _branch(
    graph: ir.Graph,
    ids: ir.Value,
    products: set[ir.Node],
    make: Callable[[Tape, ir.Node, Floats | None, Floats | None], ByteWeight],
    factors: PrefillFactors,
) -> list[ByteWeight]:
    layers = _between(graph, products, factors.gains)
    inside = set(layers)
    given = [
        output
        for node in layers
        for output in node.outputs
        if output.is_graph_output() or any(use.node not in inside for use in output.uses())
    ]
    tape = Tape(graph, "prefill")
    length = tape.op("Shape", ids, start=1, end=2)
    is_long = tape.op("GreaterOrEqual", length, np.array([_SHORTEST], np.int64))
    made = Tape(graph, "prefill")  # of constants, folded in the branch that reads it
    weights = {
        node: make(
            made,
            node,
            None if node.inputs[0] is None else factors.rows.get(node.inputs[0]),
            factors.columns.get(node),
        )
        for node in layers
        if node in products
    }
    prefill = _prefill(graph, layers, weights, given, factors.gains)
    choice = ir.node("If", [is_long], num_outputs=len(given), name=fresh_name(graph, "layers"))
    graph.insert_before(layers[0], [*tape.nodes, choice])
    for old, new in zip(given, choice.outputs, strict=True):
        _hand_over(graph, old, new, inside)
    graph.remove(layers)
    decode = ir.Graph([], given, nodes=layers, name="decode")
    choice.attributes["then_branch"] = ir.AttrGraph("then_branch", prefill)
    choice.attributes["else_branch"] = ir.AttrGraph("else_branch", decode)
    own_constants(graph, (prefill, decode))
    prefill.insert_before(prefill[0], made.nodes)
    graph.sort()
    return list(weights.values())


def _divided(graph: ir.Graph, value: ir.Value | None, factors: Floats) -> ir.Value | None:
    """A constant of a normalization, divided channel by channel."""
    array = constant(value)
    if value is None or array is None:
        return value
    return add_initializer(graph, f"{_PREFIX}{value.name}", (array / factors).astype(array.dtype))


def _cost(weights: Sequence[ByteWeight], factors: PrefillFactors | None) -> Diagnostic:
    size = sum(weight.size for weight in weights)
    stored = sum(weight.size for weight in weights if weight.stored)
    levelled = (
        "their inputs are rounded as they are: there is no calibration data that can be read "
        "again, or the recipe has no smoothing"
    )
    if factors is not None:
        levelled = f"channels of {len(factors.rows)} of their inputs are levelled"
    return Diagnostic(
        Code.PREFILL_MEMORY,
        "",
        f"prompts of {_SHORTEST} tokens and more take int8 products: their {len(weights)} weights "
        f"take {size / 1e6:.1f} MB of memory and {stored / 1e6:.1f} MB of the file; " + levelled,
        ""
        if stored
        else "they are made when the model is loaded, which takes some seven times "
        "their memory for a moment; prefill = 'int8-stored' files them instead",
        {"bytes": size, "file_bytes": stored, "weights": len(weights)},
    )


def _between(graph: ir.Graph, products: set[ir.Node], norms: Collection[ir.Node]) -> list[ir.Node]:
    """The products, their norms, and all that lies on a way from one product to another."""
    behind, before = set(products), set(products)
    for node in graph:
        if any(value is not None and value.producer() in behind for value in node.inputs):
            behind.add(node)
    for node in reversed(graph):
        if any(use.node in before for output in node.outputs for use in output.uses()):
            before.add(node)
    return [node for node in graph if (node in behind and node in before) or node in norms]


def _hand_over(graph: ir.Graph, old: ir.Value, new: ir.Value, inside: set[ir.Node]) -> None:
    """Let ``new`` be to the outside what ``old`` was, name and all."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.name = fresh_name(graph, f"decode/{old.name}")
    for use in list(old.uses()):
        if use.node not in inside:
            use.node.replace_input_with(use.idx, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new


def _prefill(
    graph: ir.Graph,
    layers: Sequence[ir.Node],
    weights: Mapping[ir.Node, ByteWeight],
    given: Sequence[ir.Value],
    gains: Mapping[ir.Node, Floats],
) -> ir.Graph:
    """A copy of the layers with int8 products, and the gains of some normalizations divided."""
    copies: dict[ir.Value, ir.Value] = {}
    rows: dict[ir.Value, Rows] = {}
    nodes: list[ir.Node] = []
    for node in layers:
        inputs = [value and copies.get(value, value) for value in node.inputs]
        if node in gains:
            inputs[1:] = [_divided(graph, value, gains[node]) for value in inputs[1:]]
        tape = Tape(graph, f"{_PREFIX}{node.name}")
        if node in weights:
            x = inputs[0]
            assert x is not None, "a product has an input"
            if x not in rows:
                rows[x] = quantized_rows(tape, x)
            bias = inputs[_BIAS] if len(inputs) > _BIAS else None
            outputs = [byte_product(tape, rows[x], weights[node], bias)]
        else:
            attributes = node.attributes.values()
            name = fresh_name(graph, f"{_PREFIX}{node.name}")
            twin = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                attributes,
                overload=node.overload,
                num_outputs=len(node.outputs),
                name=name,
            )
            outputs = list(twin.outputs)
            tape.nodes.append(twin)
        inherit(tape.nodes, [node])
        nodes.extend(tape.nodes)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            if old.name != "":
                new.name = fresh_name(graph, f"{_PREFIX}{old.name}")
            copies[old] = new
    return ir.Graph([], [copies[value] for value in given], nodes=nodes, name="prefill")

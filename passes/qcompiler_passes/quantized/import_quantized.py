"""Bring a model that comes quantized into the QDQ dialect."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import Tape, remove_dead
from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.ir.walk import op_name
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.recipe import Recipe
from qcompiler_passes.quantized.dequantized import drop_quantization, strip_float_operators
from qcompiler_passes.quantized.idle_channels import drop_idle_channels
from qcompiler_passes.quantized.integer_constants import (
    canonical_gemm,
    round_constants,
    standard_domain,
    transpose_integers,
)
from qcompiler_passes.quantized.integer_movers import spell_movers
from qcompiler_passes.quantized.products import PRODUCTS
from qcompiler_passes.quantized.qoperators import QOPERATORS
from qcompiler_passes.quantized.spelling import take_place

__all__ = ["ImportQuantized"]

_SPELLINGS = {**QOPERATORS, **PRODUCTS}


@dataclasses.dataclass(frozen=True)
class ImportQuantized(Pass):
    """Spell integer operators as DequantizeLinear, float operator, QuantizeLinear.

    Integers, scales and zero points stay what they are. Besides, the spelling variants of tools
    become one: Q of a float weight is computed, a Transpose behind a dequantized weight turns its
    integers, Gemm becomes MatMul and Add, operators that move integers get DQ before and Q behind.
    With a recipe that wants floats (no schemes) the quantization is taken out instead; with
    ``quantized.strip`` around operators that the target has no kernel for. A model without integer
    operators is left alone.

    Given::

        %q = QLinearMatMul(%a, %as, %az, %b, %bs, %bz, %ys, %yz)

    Result::

        %ad = DequantizeLinear(%a, %as, %az)
        %bd = DequantizeLinear(%b, %bs, %bz) axis=-1
        %y = MatMul(%ad, %bd)
        %q = QuantizeLinear(%y, %ys, %yz)

    Not exact by bits: an integer operator may round a result that lies between two steps to the
    other side.
    """

    name: ClassVar[str] = "import-quantized"
    phase: ClassVar[Phase] = Phase.FLOAT
    default: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Rewrite the main graph; operators in bodies stay."""
        graph = model.graph
        diagnostics: list[Diagnostic] = []
        rounded = 0
        changed = drop_idle_channels(graph)
        for node in list(graph):
            spell = _SPELLINGS.get(op_name(node))
            if spell is None or node.graph is not graph:
                continue
            tape = Tape(graph, node.name or "")
            spelling = spell(node, tape)
            if isinstance(spelling, str):
                diagnostics.append(
                    Diagnostic(
                        Code.ALREADY_QUANTIZED,
                        node.name or "",
                        f"this {op_name(node)} stays as it came: {spelling}",
                    )
                )
                continue
            take_place(graph, spelling)
            changed = True
            rounded += _rounds_now(node, state)
        diagnostics += _rounded_activations(rounded)
        if changed:
            infer_shapes(model)
        changed |= _constants(graph, model.opset_imports.get("", 0))
        changed |= spell_movers(graph)
        if _to_floats(state.recipe):
            changed |= drop_quantization(graph)
        elif state.recipe.quantized.strip:
            stripped = strip_float_operators(graph, state.target, state.form)
            changed |= stripped
            if not stripped:
                diagnostics.append(_NOTHING_TO_STRIP)
        if changed:
            remove_dead(model)
        return PassResult(modified=changed, diagnostics=diagnostics)


_NOTHING_TO_STRIP = Diagnostic(
    Code.KEY_UNUSED,
    "quantized.strip",
    "has no effect: no conversion stands before an operator that the target has no kernel for, and "
    "those whose types no kernel takes stay as well",
    "take all of the quantization out by the recipe 'float'",
)


def _rounds_now(node: ir.Node, state: State) -> bool:
    """Whether a product multiplied floats, which the kernels here do on request alone."""
    recipe, level = state.recipe, node.attributes.get_int("accuracy_level", 0)
    if node.op_type != "MatMulNBits" or level or _to_floats(recipe):
        return False
    return recipe.weights.accuracy_level == 4 and state.target.runtime == "onnxruntime"


def _to_floats(recipe: Recipe) -> bool:
    """Whether all of the quantization shall go."""
    return not recipe.schemes and not recipe.rules


def _rounded_activations(count: int) -> list[Diagnostic]:
    if not count:
        return []
    message = (
        f"{count} MatMulNBits came without an accuracy level, under which activations stay"
        " float; they are rounded to int8 block by block now, which is faster"
    )
    hint = "weights.accuracy_level = 1 keeps them in float"
    return [Diagnostic(Code.ROUNDED_ACTIVATIONS, "MatMulNBits", message, hint, {"nodes": count})]


def _constants(graph: ir.Graph, opset: int) -> bool:
    changed = False
    for node in list(graph):
        changed |= standard_domain(node, opset)
        changed |= round_constants(graph, node)
    for node in list(graph):
        changed |= transpose_integers(graph, node)
    for node in list(graph):
        changed |= canonical_gemm(graph, node)
    return changed

"""Why a node stays in float: the most precise coded reason."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from qcompiler.analysis.regions import FLOAT
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.provenance import module_of
from qcompiler.ir.walk import LINEAR, op_name
from qcompiler.targets.cost import Shapes
from qcompiler.targets.schema import Target
from qcompiler_passes.decide.prices import Prices
from qcompiler_passes.decide.rows import Refusal, telling
from qcompiler_passes.decide.units import Unit

__all__ = ["diagnose", "place_of", "why_float"]

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_QUANTIZED_PREFIXES = (
    "com.microsoft:QLinear",
    "com.microsoft:QGemm",
    "com.microsoft:QAttention",
    "com.microsoft:DynamicQuantize",
    "com.microsoft:DequantizeLinear",
    "com.microsoft:QuantizeLinear",
    "com.microsoft:MatMulIntegerToFloat",
    "com.microsoft:MatMulNBits",
    "com.microsoft:GatherBlockQuantized",
)


def place_of(node: ir.Node) -> str:
    """The node and its module, as a user knows them."""
    module = module_of(node)
    return f"{node.name} ({module})" if module else str(node.name)


def diagnose(node: ir.Node, refusal: Refusal, **values: object) -> Diagnostic:
    """The refusal at its place."""
    return Diagnostic(refusal.code, place_of(node), refusal.message, refusal.hint, values)


def why_float(unit: Unit, target: Target, shapes: Shapes, prices: Prices) -> Diagnostic:
    """The reason of a unit's head that the cut left in float."""
    node, rule = unit.head, unit.wish.rule
    if unit.wish.pinned is not None:
        return dataclasses.replace(unit.wish.pinned, where=place_of(node))
    if rule is not None and rule.scheme == "float":
        return diagnose(
            node, Refusal(Code.KEPT_BY_RULE, rule.reason or f"a rule keeps {rule.match!r} in float")
        )
    found = _by_kind(node, shapes)
    if found is not None:
        return diagnose(node, found)
    if unit.options:
        return _by_cost(unit, prices)
    refusal = telling(unit.refusals)
    if refusal is None:
        refusal = Refusal(
            Code.NO_KERNEL, f"{target.name} has no low-precision kernel for {op_name(node)}"
        )
    return diagnose(node, refusal)


def _by_kind(node: ir.Node, shapes: Shapes) -> Refusal | None:
    """Reasons that hold whatever the target has."""
    name = op_name(node)
    if node.domain not in _DOMAINS:
        return Refusal(Code.CUSTOM_OP, f"nothing is known of operators of domain {node.domain!r}")
    if name in _QUANTIZED_OPS or name.startswith(_QUANTIZED_PREFIXES):
        return Refusal(Code.ALREADY_QUANTIZED, f"the model came with this {node.op_type}")
    value = node.outputs[0] if node.outputs else None
    if value is None or value.name is None or value.name not in shapes:
        return None
    dtype = shapes[value.name][0]
    if dtype.kind in "iu" and name not in LINEAR:  # on integers those compute no shapes
        return Refusal(Code.SHAPE_COMPUTATION, f"it gives {dtype.name} shapes, indices or masks")
    if dtype.kind in "biuOSU":
        return Refusal(Code.WRONG_DTYPE, f"it gives {dtype.name}, not floating-point numbers")
    return None


def _by_cost(unit: Unit, prices: Prices) -> Diagnostic:
    node = unit.head
    best = min(unit.options, key=lambda option: option.us)
    if best.kernel is None:
        return diagnose(
            node, Refusal(Code.DATA_MOVEMENT, "it moves data, and its neighbours stay in float")
        )
    float_us, kernel_us = unit.float_us or 0.0, best.us
    conversions_us = 0.0
    if best.mode != FLOAT:
        reads = dict.fromkeys(node.inputs[index] for index in unit.reads)
        conversions_us += sum(prices.quantize(value) for value in reads if value is not None)
        if best.mode[1]:
            conversions_us += sum(prices.dequantize(value) for value in unit.outputs)
    values = {
        "float_us": round(float_us, 2),
        "kernel_us": round(kernel_us, 2),
        "conversions_us": round(conversions_us, 2),
    }
    took = f"{best.kernel.id} takes {kernel_us:.1f} us, float {float_us:.1f} us"
    hint = "a rule with force = true quantizes it all the same"
    if kernel_us >= float_us:
        return diagnose(node, Refusal(Code.DOES_NOT_PAY, took, hint), **values)
    message = f"{took}, but the conversions around it take up to {conversions_us:.1f} us"
    return diagnose(node, Refusal(Code.FLOAT_NEIGHBOURS, message, hint), **values)

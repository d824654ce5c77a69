"""Embedding tables that are the output layer's weight, transposed: both get one form.

A table of few bits beside the same numbers in float would make the model larger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.plan import Plan, Verdict
from qcompiler.targets.schema import Scheme
from qcompiler_passes.decide.wishes import Wish
from qcompiler_passes.planned import product_of_table

__all__ = ["follow_tie", "follow_ties", "stored_twice"]


def follow_ties(graph: ir.Graph, wishes: Mapping[str, Wish]) -> dict[str, Wish]:
    """Let a table follow the wish for the product that it is tied to, where no rule is on it."""
    found = dict(wishes)
    for node in graph:
        product = product_of_table(node) if node.op_type == "Gather" else None
        if product is not None and str(node.name) in wishes and str(product.name) in wishes:
            found[str(node.name)] = follow_tie(node, product, wishes)
    return found


def follow_tie(table: ir.Node, product: ir.Node, wishes: Mapping[str, Wish]) -> Wish:
    """The wish for a table that is tied to a product: the product's, unless it has its own."""
    own, other = wishes[str(table.name)], wishes[str(product.name)]
    if own.rule is None and (Scheme.WEIGHT in other.schemes or not other.schemes):
        return dataclasses.replace(other, kernel="", rule=None, tied=True)
    return own


def stored_twice(graph: ir.Graph, plan: Plan) -> list[Diagnostic]:
    """Tables that stay in float beside their product, which gets integers of its own (QC117)."""
    found = []
    for node in graph:
        decision = plan.nodes.get(str(node.name))
        if node.op_type != "Gather" or decision is None or decision.verdict is not Verdict.FLOAT:
            continue
        product = product_of_table(node)
        other = None if product is None else plan.nodes.get(str(product.name))
        if product is None or other is None or other.verdict is not Verdict.QUANTIZED:
            continue
        weight, spec = product.inputs[1], other.inputs[1]
        count = math.prod(weight.shape.numpy()) if weight is not None and weight.shape else 0
        size = count * (spec.dtype.bitwidth if spec is not None else 8) // 8
        said = f"{product.name} reads this table too, and is quantized: {size} bytes beside it"
        hint = "keep that node in float by a rule if size matters more than its speed"
        found.append(Diagnostic(Code.SHARED_WEIGHT, str(node.name), said, hint, {"bytes": size}))
    return found

"""Embedding tables that are the output layer's weight, transposed: both get one form.

A table of few bits beside the same numbers in float would make the model larger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.targets.schema import Scheme
from qcompiler_passes.decide.wishes import Wish
from qcompiler_passes.planned import product_of_table

__all__ = ["follow_ties"]


def follow_ties(graph: ir.Graph, wishes: Mapping[str, Wish]) -> dict[str, Wish]:
    """Let a table follow the wish for the product that it is tied to, where no rule is on it."""
    found = dict(wishes)
    for node in graph:
        wish = wishes.get(str(node.name))
        if node.op_type != "Gather" or wish is None or wish.rule is not None:
            continue
        product = product_of_table(node)
        other = wishes.get(str(product.name)) if product is not None else None
        if other is not None and (Scheme.WEIGHT in other.schemes or not other.schemes):
            found[str(node.name)] = dataclasses.replace(other, kernel="", rule=None, tied=True)
    return found

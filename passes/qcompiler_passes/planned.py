"""Read a plan beside its graph: fused chains, activation parameters, and the stamps on nodes.

``insert-qdq`` is the last pass that sees the plan. What lowering must know of it is stamped on the
nodes as metadata, so that a lowering reads the graph and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import constant
from qcompiler.ir.lazy import tied
from qcompiler.ir.provenance import SPEC
from qcompiler.numerics.affine import range_to_params
from qcompiler.pipeline.contract import State
from qcompiler.plan import Fixed, Plan, Verdict
from qcompiler.schemes import Granularity, QSpec

__all__ = [
    "CARRIER",
    "INTO",
    "KERNEL",
    "SPEC",
    "TIED",
    "bias_operand",
    "fused_behind",
    "product_of_table",
    "stored_parameters",
    "tied_tables",
    "value_spec",
]

KERNEL = "qcompiler.kernel"  # on a computing node: id of its kernel row
INTO = "qcompiler.into"  # on an absorbed node: name of the node that absorbs it
CARRIER = "qcompiler.carrier"  # on a node that moves low-precision data unchanged
TIED = "qcompiler.tied"  # on a GatherBlockQuantized: name of the MatMul that has its table

_Params = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


def fused_behind(node: ir.Node, plan: Plan) -> Iterator[ir.Node]:
    """The nodes absorbed by ``node``, in order: each reads the one before and nobody else does."""
    value = node.outputs[0]
    while not value.is_graph_output():
        uses = value.uses()
        if len(uses) != 1:
            return
        follower = next(iter(uses)).node
        decision = plan.nodes.get(follower.name or "")
        if decision is None or decision.verdict is not Verdict.FUSED or decision.into != node.name:
            return
        yield follower
        value = follower.outputs[0]


def bias_operand(add: ir.Node, behind: ir.Value, channels: int) -> ir.Value | None:
    """The constant that ``add`` adds to ``behind`` per output channel; None when it is no bias."""
    if add.op_type != "Add" or len(add.inputs) != 2:
        return None
    other = add.inputs[1] if add.inputs[0] is behind else add.inputs[0]
    array = constant(other)
    if array is None or array.size != channels or array.shape[-1:] != (channels,):
        return None
    return other


def product_of_table(gather: ir.Node) -> ir.Node | None:
    """The MatMul of the same graph whose constant weight is the gathered table, transposed."""
    table = gather.inputs[0]
    if table is None or not isinstance(gather.graph, ir.Graph):
        return None
    for node in gather.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" and len(node.inputs) > 1 else None
        if weight is not None and tied(table.const_value, weight.const_value):
            return node
    return None


def tied_tables(graph: ir.Graph, plan: Plan) -> dict[str, ir.Node]:
    """By Gather in blocks, the MatMul that has its table in the same form: one file for both."""
    found = {}
    for node in graph:
        decision = plan.nodes.get(node.name or "")
        spec = decision.inputs[0] if decision is not None and decision.inputs else None
        if node.op_type != "Gather" or spec is None or spec.granularity is not Granularity.BLOCK:
            continue
        product = product_of_table(node)
        other = plan.nodes.get(product.name or "") if product is not None else None
        weight = other.inputs[1] if other is not None and len(other.inputs) > 1 else None
        if product is not None and weight == dataclasses.replace(spec, axis=0):
            found[node.name or ""] = product
    return found


def value_spec(plan: Plan, value: str) -> QSpec:
    """How an activation of the plan is stored."""
    return plan.resolve(value).spec


def stored_parameters(state: State, value: str) -> _Params:
    """Scale (float32 scalar) and zero point (int32 scalar) of a static activation.

    Raises:
        QcError: QC408, the plan has no intent for the value, or calibration gave no range.
    """
    assert state.plan is not None
    if value not in state.plan.values:
        raise QcError(
            Code.BAD_PLAN,
            value,
            "a node takes the value in low precision but the plan has no intent for it",
            "add it to the plan's values, or keep the node in float",
        )
    owner = state.plan.owner(value)
    intent = state.plan.resolve(value)
    if isinstance(intent, Fixed):
        lo, hi = np.asarray(intent.lo, np.float32), np.asarray(intent.hi, np.float32)
    else:
        found = None if state.ranges is None else state.ranges.get(owner)
        if found is None:
            raise QcError(
                Code.BAD_PLAN,
                owner,
                "the value has no calibrated range",
                "calibrate with this plan",
            )
        lo, hi = np.asarray(found.lo), np.asarray(found.hi)
    scale, zero_point = range_to_params(lo.reshape(()), hi.reshape(()), intent.spec)
    return np.asarray(scale, np.float32), np.asarray(zero_point, np.int32)

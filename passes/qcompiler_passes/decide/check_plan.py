"""Check a plan that did not come from the planner: does it fit the model and the target?"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.ir.edit import is_constant
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import State
from qcompiler.plan import Fixed, NodeDecision, Own, Plan, Verdict
from qcompiler.recipe_options import Algorithm
from qcompiler.targets.conditions import Context, first_failure
from qcompiler_passes.planned import fused_behind

__all__ = ["check_plan"]


def check_plan(plan: Plan, model: ir.Model, state: State) -> None:
    """Refuse a plan that later passes could not carry out.

    Checked: target and form; a decision for each node and for no other; kernels that the target
    has for the operator and whose conditions hold; absorbed nodes stand behind what absorbs them;
    every low-precision edge has a spec, the same at both ends.

    Raises:
        QcError: QC408 naming the node or value; QC410 when the plan needs ranges and there is no
            calibration data.
    """
    for what, found, wanted in (
        ("target", plan.target, state.target.name),
        ("form", plan.form, state.form.value),
    ):
        if found != wanted:
            raise _bad(
                "plan",
                f"was made for {what} {found!r}, this compile has {wanted!r}",
                f"give {what}={found!r} too, or leave the plan out",
            )
    nodes = {str(node.name): node for node in all_nodes(model)}
    for name in plan.nodes:
        if name not in nodes:
            raise _bad(name, "the model has no such node", nearest(name, nodes))
    for name, node in nodes.items():
        if name not in plan.nodes:
            raise _bad(name, f"the plan says nothing of this {op_name(node)}", "give it a verdict")
        decision = plan.nodes[name]
        if decision.op != op_name(node):
            raise _bad(name, f"is a {op_name(node)}, the plan says {decision.op}")
        if node.graph is not model.graph and decision.verdict is not Verdict.FLOAT:
            raise _bad(name, "is in the body of an If, Loop or Scan and must stay in float")
        _CHECKS[decision.verdict](node, decision, plan, state)
    _check_values(plan, model)
    needs_ranges = any(isinstance(intent, Own) for intent in plan.values.values())
    if needs_ranges and state.feeds is None and state.statistics is None and state.ranges is None:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            "plan",
            "the plan has static kernels, and there is no calibration data",
            "give calibration=...",
        )


def _bad(where: str, message: str, hint: str = "") -> QcError:
    return QcError(Code.BAD_PLAN, where, message, hint)


def _float(node: ir.Node, decision: NodeDecision, plan: Plan, state: State) -> None:
    if any(decision.inputs) or any(decision.outputs):
        raise _bad(decision.node, "is kept in float but has specs")


def _removed(node: ir.Node, decision: NodeDecision, plan: Plan, state: State) -> None:
    raise _bad(decision.node, "is in the model but the plan says that it is removed")


def _fused(node: ir.Node, decision: NodeDecision, plan: Plan, state: State) -> None:
    producer = next((v.producer() for v in node.inputs if v is not None and v.producer()), None)
    while producer is not None and str(producer.name) != decision.into:
        into = plan.nodes.get(str(producer.name))
        fused = into is not None and into.verdict is Verdict.FUSED and into.into == decision.into
        values = producer.inputs if fused else ()
        producer = next((v.producer() for v in values if v is not None and v.producer()), None)
    if producer is None or node not in fused_behind(producer, plan):
        raise _bad(decision.node, f"does not stand right behind {decision.into!r} alone")
    into = plan.nodes.get(decision.into)
    if into is None or into.verdict is not Verdict.QUANTIZED:
        raise _bad(decision.node, f"is absorbed by {decision.into!r}, which is not quantized")
    rows = [row for row in state.target.kernels if row.id == into.kernel]
    if rows and op_name(node) not in rows[0].fuses:
        raise _bad(decision.node, f"{into.kernel} does not absorb {op_name(node)}")


def _carried(node: ir.Node, decision: NodeDecision, plan: Plan, state: State) -> None:
    movers = {row.op for row in state.target.carries} | {row.op for row in state.target.unifies}
    if op_name(node) not in movers:
        raise _bad(
            decision.node, f"{state.target.name} does not carry 8-bit data through {op_name(node)}"
        )
    reads = [v for v, spec in zip(node.inputs, decision.inputs, strict=False) if spec and v]
    if not reads:
        raise _bad(decision.node, "carries low precision but no input has a spec")
    tied = {str(value.name) for value in (*reads, *node.outputs) if value.name}
    missing = sorted(tied - plan.values.keys())
    if missing:
        raise _bad(missing[0], f"{decision.node} moves it in low precision, but it has no intent")
    if len({plan.owner(name) for name in tied}) > 1:
        raise _bad(decision.node, 'what it reads and writes must share parameters ("same")')


def _quantized(node: ir.Node, decision: NodeDecision, plan: Plan, state: State) -> None:
    target = state.target
    rows = {row.id: row for row in target.kernels if state.form in row.forms}
    if decision.kernel not in rows:
        raise _bad(
            decision.node,
            f"{target.name} has no kernel {decision.kernel!r} in form {state.form.value}",
            nearest(decision.kernel, rows),
        )
    row = rows[decision.kernel]
    if row.op != op_name(node):
        raise _bad(decision.node, f"{row.id} computes {row.op}, this is a {op_name(node)}")
    if len(decision.inputs) > len(node.inputs):
        raise _bad(
            decision.node, f"has specs for {len(decision.inputs)} of {len(node.inputs)} inputs"
        )
    for index, wanted in enumerate(row.inputs):
        if wanted is not None and not any(decision.inputs[index : index + 1]):
            raise _bad(decision.node, f"input {index} has no spec, {row.id} takes {wanted}")
    if decision.algorithm and decision.algorithm not in get_args(Algorithm):
        hint = nearest(decision.algorithm, get_args(Algorithm))
        raise _bad(decision.node, f"no algorithm {decision.algorithm!r}", hint)
    weight = decision.inputs[1] if len(decision.inputs) > 1 else None
    context = Context(state.shapes or {}, target, state.form, weight)
    failed = first_failure(row, node, context)
    if failed is not None:
        raise _bad(decision.node, f"{row.id}: {failed[1]}")


_CHECKS: dict[Verdict, Callable[[ir.Node, NodeDecision, Plan, State], None]] = {
    Verdict.FLOAT: _float,
    Verdict.REMOVED: _removed,
    Verdict.FUSED: _fused,
    Verdict.CARRIED: _carried,
    Verdict.QUANTIZED: _quantized,
}


def _check_values(plan: Plan, model: ir.Model) -> None:
    """Every stored activation has an intent with the spec of those that read and write it."""
    known = {str(value.name) for value in model.graph.inputs}
    known.update(str(v.name) for node in model.graph for v in node.outputs if v.name)
    for name in plan.values:
        if name not in known:
            raise _bad(name, "the model has no such activation", nearest(name, known))
        if plan.owner(name) not in plan.values:
            raise _bad(name, "shares the parameters of a value that has none")
    for node in model.graph:
        decision = plan.nodes[str(node.name)]
        stored = [
            (value, spec)
            for value, spec in zip(node.inputs, decision.inputs, strict=False)
            if value is not None
            and spec is not None
            and not spec.dynamic
            and not is_constant(value)
        ]
        chain = list(fused_behind(node, plan))
        outputs = chain[-1].outputs if chain else node.outputs
        stored += [
            (value, spec)
            for value, spec in zip(outputs, decision.outputs, strict=False)
            if spec is not None
        ]
        for value, spec in stored:
            name = str(value.name)
            if name not in plan.values:
                raise _bad(name, f"{decision.node} takes it as {spec}, but it has no intent")
            intent = plan.resolve(name)
            assert isinstance(intent, Own | Fixed), "an owner has a spec"
            if intent.spec != spec:
                raise _bad(name, f"{decision.node} takes it as {spec}, stored is {intent.spec}")

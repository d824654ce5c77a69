"""Take over the quantization that a model came with: plan, ranges, weights, stamps."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.ir.edit import remove_dead
from qcompiler.ir.walk import all_nodes
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Plan, Verdict
from qcompiler_passes.quantized.adoption import Adoption
from qcompiler_passes.quantized.fitting import Fitting
from qcompiler_passes.quantized.stored import is_dequantize, is_quantize

__all__ = ["AdoptQuantized"]


@dataclasses.dataclass(frozen=True)
class AdoptQuantized(Pass):
    """Recognize DQ, operator, Q sites that a kernel of the target computes, and stamp them.

    Integers, scales and zero points stay. Where the target wants the other sign, integers and
    zero point move by 128 together, which rounds nothing. What no kernel computes keeps its Q and
    DQ, and with them its numbers. The plan says of each node what became of it. A given plan keeps
    nodes as they came by the verdict float.

    Given:  ``DequantizeLinear(int8) -> MatMul <- DequantizeLinear(uint8 weight)``
    Result: the same with uint8 and int8, the MatMul stamped ``matmul-static``
    """

    name: ClassVar[str] = "adopt-quantized"
    phase: ClassVar[Phase] = Phase.APPLY
    default: ClassVar[bool] = False
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.RANGES, Fact.WEIGHTS})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Stamp nodes of the main graph; fill plan, ranges and weights.

        Raises:
            QcError: QC408, a given plan was made for another target, form or model; QC404, a rule
                matches nothing.
        """
        assert state.shapes is not None, "the runner checks what a pass needs"
        fitting = Fitting(state.target, state.form, state.shapes)
        kept = _kept(state.plan, state)
        adoption = Adoption(model, state, fitting, kept)
        modified = adoption.run()
        if modified:
            remove_dead(model)
        decisions = adoption.verdicts.of(model)
        for name in kept:
            if name not in decisions:
                hint = nearest(name, decisions)
                raise QcError(Code.BAD_PLAN, name, "the model has no such node", hint)
        state.ranges = adoption.ranges
        state.weights = adoption.weights
        state.plan = Plan(
            state.target.name,
            state.recipe.name,
            state.form.value,
            decisions,
            adoption.values,
        )
        return PassResult(modified=modified, diagnostics=[_told(model, state.plan)])


def _kept(given: Plan | None, state: State) -> frozenset[str]:
    """Nodes that a given plan keeps in float; what else it says is what came with the model."""
    if given is None:
        return frozenset()
    for what, found, wanted in (
        ("target", given.target, state.target.name),
        ("form", given.form, state.form.value),
    ):
        if found != wanted:
            raise QcError(
                Code.BAD_PLAN,
                "plan",
                f"was made for {what} {found!r}, this compile has {wanted!r}",
                f"give {what}={found!r} too, or leave the plan out",
            )
    return frozenset(item.node for item in given if item.verdict is Verdict.FLOAT)


def _told(model: ir.Model, plan: Plan) -> Diagnostic:
    kept = sum(
        plan.nodes[str(node.name)].verdict is Verdict.FLOAT
        for node in all_nodes(model)
        if is_quantize(node) or is_dequantize(node)
    )
    sites = sum(item.verdict is Verdict.QUANTIZED for item in plan)
    message = f"the model came quantized: {sites} operators keep their integers on {plan.target}"
    if kept:
        message += f", {kept} conversions around float operators stay as they came"
    return Diagnostic(
        Code.ALREADY_QUANTIZED,
        model.graph.name or "model",
        message,
        "recipe = 'float' takes the quantization out",
        {"sites": sites, "kept": kept},
    )

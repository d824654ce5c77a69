"""Never slower than float: what is returned when the quantized form was measured to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import remove_dead
from qcompiler.ir.provenance import module_of, origins
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import Feed, State
from qcompiler.pipeline.registry import default_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.runtime.settings import SessionSettings
from qcompiler.verify.check import Checked, check_artifact

__all__ = ["all_float", "compile_float", "fall_back", "is_quantized"]

# What the artifact holds besides its layers; untrue once the quantized form is dropped.
_OF_FORM = frozenset({Code.ALREADY_QUANTIZED, Code.INT8_CACHE, Code.PREFILL_MEMORY})


def fall_back(
    reference: ir.Model,
    state: State,
    measured: Checked,
    samples: Sequence[Feed],
    threads: int | None,
    source: str,
    quantized: bool,
) -> tuple[ir.Model, State, Checked]:
    """The float form, and the model as it came when even that is slower or it came quantized."""
    what, dropped = ("the model as it came", "new") if quantized else ("float", "quantized")
    with_it = ", kv_cache with it" if state.recipe.kv_cache else ""
    said = Diagnostic(
        Code.MEASURED_SLOWER,
        "",
        f"measured {measured.latency['ratio']:.2f}x the speed of {what} on this host; "
        f"the {dropped} form was dropped{with_it}",
        "a recipe with force = true keeps it; `qcompile probe --save` refits the cost model",
        dict(measured.latency),
    )
    base = dataclasses.replace(
        state,
        plan=None,
        ranges=None,
        weights=None,
        statistics=None,
        shapes=None,
        session=SessionSettings(),
        diagnostics=[*(item for item in state.diagnostics if item.code not in _OF_FORM), said],
        removed={},
    )
    if not quantized:
        fused = compile_float(reference, base)
        base.plan = all_float(fused, base, Code.MEASURED_SLOWER)
        checked = check_artifact(reference, fused, base, samples, threads=threads, source=source)
        if not checked.slower_than(state.recipe.verify.max_slowdown):
            return fused, base, checked
    as_it_came = reference.clone()
    base.removed = {}
    base.plan = all_float(as_it_came, base, Code.MEASURED_SLOWER)
    checked = check_artifact(reference, as_it_came, base, samples, threads=threads, source=source)
    return as_it_came, base, dataclasses.replace(checked, latency={})


def compile_float(model: ir.Model, state: State) -> ir.Model:
    """The float form of ``model`` for the state's target: fused, not prepared for integers."""
    copy = model.clone()
    exact = [
        item
        for item in default_pipeline()
        if item.phase.name == "FLOAT" or item.name == "share-transposed"
    ]
    run_pipeline(exact, copy, state)
    remove_dead(copy)
    return copy


def all_float(model: ir.Model, state: State, code: Code) -> Plan:
    """A plan that keeps every node in float for one reason."""
    nodes = {}
    for node in all_nodes(model):
        reason = Diagnostic(code, node.name or "", code.explanation.rstrip(".").lower())
        nodes[node.name or ""] = NodeDecision(
            node.name or "",
            op_name(node),
            Verdict.FLOAT,
            reason=reason,
            origin=origins(node),
            module=module_of(node),
        )
    return Plan(state.target.name, state.recipe.name, state.form.value, nodes)


def is_quantized(plan: Plan | None) -> bool:
    """Whether the plan computes anything in low precision."""
    return plan is not None and any(item.verdict is Verdict.QUANTIZED for item in plan)

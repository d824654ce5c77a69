"""Put together what a compile has to say: the report and the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompiler.diagnostics import Diagnostic
from qcompiler.ir.text import model_text
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import Pass, State
from qcompiler.pipeline.registry import pipeline_text
from qcompiler.plan import Plan
from qcompiler.report.model import Report, coverage, removed_decisions

if TYPE_CHECKING:
    from qcompiler.frontends.opened import Opened
    from qcompiler.verify.check import Checked

__all__ = ["assemble_report", "complete_plan", "make_manifest", "text_digest"]


def complete_plan(reference: ir.Model, state: State) -> Plan:
    """The plan with a decision for each of the user's nodes that exact passes folded away."""
    assert state.plan is not None
    return dataclasses.replace(
        state.plan, removed=removed_decisions(state.removed, _operators(reference))
    )


def assemble_report(
    opened: Opened,
    state: State,
    plan: Plan,
    checked: Checked,
    *,
    sizes: Mapping[str, int],
    timings: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]] = (),
    steps: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """The report of one compile.

    Args:
        opened: The model as it came through the door.
        state: Facts and diagnostics of the pipeline.
        plan: The complete plan.
        checked: What verification found.
        sizes: ``float_bytes`` and ``artifact_bytes``.
        timings: Seconds, from the clock.
        layers: Rows of the sensitivity or layer comparison, when there are any.
        steps: Rows of the steps for accuracy, when they were tried.
    """
    return Report(
        source=_describe(opened.model, opened.kind, opened.source),
        target=state.target.name,
        recipe=state.recipe.name,
        form=state.form.value,
        coverage=coverage(plan),
        calibration=_calibration(state),
        fidelity=tuple(item.to_dict() for item in checked.fidelity),
        kernels=checked.proof.to_dict() if checked.proof else {},
        latency=checked.latency,
        profile=checked.profile,
        weights=_weights(state),
        layers=tuple(layers),
        steps=tuple(steps),
        sizes=sizes,
        timings=timings,
        versions=_versions(),
        diagnostics=_unique([*state.diagnostics, *checked.diagnostics]),
    )


def text_digest(model: ir.Model) -> str:
    """SHA-256 of the model's text, which holds the digests of its weights."""
    return hashlib.sha256(model_text(model).encode()).hexdigest()


def make_manifest(digest: str, state: State, passes: Sequence[Pass]) -> dict[str, Any]:
    """What identifies the compile: hashes, target, recipe, pipeline, seed, versions."""
    return {
        "producer": f"qcompiler {_version('qcompiler-onnx')}",
        "model": digest,
        "target": state.target.name,
        "form": state.form.value,
        "recipe": state.recipe.model_dump(mode="json"),
        "pipeline": pipeline_text(passes),
        "seed": state.recipe.seed,
        "calibration": state.feeds.digest if state.feeds is not None else None,
        "versions": _versions(),
    }


def _operators(model: ir.Model) -> dict[str, str]:
    return {node.name or "": op_name(node) for node in all_nodes(model)}


def _calibration(state: State) -> dict[str, Any]:
    if not state.ranges:
        return {}
    from qcompiler.report.distributions import activation_ranges

    return {
        "method": state.recipe.calibration.method,
        "values": activation_ranges(state.ranges, state.statistics),
    }


def _weights(state: State) -> tuple[dict[str, Any], ...]:
    if not state.weights:
        return ()
    from qcompiler.report.distributions import weight_ranges

    return tuple(weight_ranges(state.weights))


def _describe(model: ir.Model, kind: str, source: str) -> dict[str, Any]:
    return {
        "name": pathlib.PurePath(source).name or source,
        "kind": kind,
        "nodes": sum(1 for _ in all_nodes(model)),
        "inputs": [value.name for value in model.graph.inputs],
        "outputs": [value.name for value in model.graph.outputs],
        "opset": model.opset_imports.get("", 0),
    }


def _versions() -> dict[str, str]:
    names = ("qcompiler-onnx", "onnxruntime", "onnx", "onnx-ir", "numpy")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _unique(diagnostics: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Without repeats (a fall-back runs the float passes twice), order kept."""
    return tuple({(d.code, d.where, d.message): d for d in diagnostics}.values())

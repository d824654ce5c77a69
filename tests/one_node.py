"""Artifacts in which one node alone is quantized: the ground truth of sensitivity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.calibration.feeds import open_feeds
from qcompiler.frontends import open_model
from qcompiler.pipeline.contract import Phase, State
from qcompiler.pipeline.registry import default_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import Verdict
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.targets.registry import load_target

Run = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


def rounded(
    model: Any, target: str, recipe: Mapping[str, Any] | str, data: Any, *, check: bool = True
) -> tuple[ir.Model, State]:
    """The model before Q and DQ come in, and what belongs to it."""
    opened = open_model(model).model
    feeds = open_feeds(data, input_specs(opened))
    where = load_target(target)
    state = State(where, Recipe.of(recipe), where.form, feeds=feeds, sample=feeds.first)
    early = [item for item in default_pipeline() if item.phase < Phase.APPLY]
    run_pipeline(early, opened, state, check=check)
    return opened, state


def alone(planned: ir.Model, state: State, node: str) -> Run:
    """The artifact in which ``node`` runs in its integer kernel and all others in float."""
    assert state.plan is not None
    others = [
        item.node
        for item in state.plan
        if item.node != node and item.verdict in (Verdict.QUANTIZED, Verdict.CARRIED)
    ]
    plan = state.plan.keep_float(*others) if others else state.plan
    state = dataclasses.replace(state, plan=plan, diagnostics=[], removed={})
    copy = planned.clone()
    late = [item for item in default_pipeline() if item.phase >= Phase.APPLY]
    run_pipeline(late, copy, state, check=False)
    session = open_session(copy, settings=state.session)
    return lambda feed: run(session, feed)


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation of lists without ties."""
    first, second = (np.argsort(np.argsort(x)) for x in (a, b))
    return float(np.corrcoef(first, second)[0, 1])

"""Damage of each node, and returning nodes to float: on models small enough to know the truth."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from one_node import alone, rounded
from qcompiler import qcompile
from qcompiler.artifact import Artifact
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.registry import parse_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.sensitivity.ranking import rank
from qcompiler.sensitivity.switchboard import Switchboard, sample_of
from qcompiler.verify.check import difference
from qcompiler_models import tiny

TARGET = "cpu-vnni"
FORCED: Mapping[str, Any] = {
    "base": "static-int8", "force": True, "verify": {"enabled": False},
}  # fmt: skip


def tiny_rounded(name: str) -> tuple[ir.Model, State]:
    return rounded(tiny.build(name), TARGET, FORCED, tiny.feeds(name, 8))


def compiled(name: str, **changes: Any) -> Artifact:
    recipe = {**FORCED, **changes}
    metric = recipe.pop("metric", None)
    return qcompile(tiny.build(name), TARGET, recipe, tiny.feeds(name, 8), metric=metric)


def said(artifact: Artifact, code: Code) -> list[Any]:
    return [item for item in artifact.report.diagnostics if item.code is code]


@pytest.mark.parametrize("name", ["mlp", "residual", "convnet", "transformer", "half"])
def test_switches_off_compute_the_float_model(name: str) -> None:
    planned, state = tiny_rounded(name)
    board = planned.clone()
    run_pipeline(parse_pipeline("insert-switches"), board, state, check=True, compare=difference)
    assert model_text(board) != model_text(planned)


@pytest.mark.parametrize("name", ["mlp", "residual", "transformer"])
def test_a_switch_does_to_the_output_what_the_integer_kernel_does(name: str) -> None:
    planned, state = tiny_rounded(name)
    board = Switchboard.open(planned, state)
    feed = dict(tiny.feeds(name, 1)[0])
    off = np.zeros((1, len(board.nodes)), np.bool_)
    floats = board.run(feed, off)
    for index, node in enumerate(board.nodes):
        switches = off.copy()
        switches[0, index] = True
        simulated, real = board.run(feed, switches), alone(planned, state, node)(feed)
        for key, y in floats.items():
            size = float(np.linalg.norm(y))
            want = float(np.linalg.norm(real[key] - y)) / size
            got = float(np.linalg.norm(simulated[key] - y)) / size
            assert got == pytest.approx(want, rel=0.15, abs=1e-3), node


def test_rows_of_a_batch_give_the_damage_that_runs_of_their_own_give() -> None:
    planned, state = tiny_rounded("residual")
    feeds = tiny.feeds("residual", 2)
    found = rank(planned, state, feeds)
    board = Switchboard.open(planned, state)
    assert board.takes_rows(sample_of(feeds[0], board.batched, 0))
    assert found.runs < len(found.damage) * found.samples
    one_by_one = dataclasses.replace(board, batched=())
    assert not one_by_one.takes_rows(feeds[0])
    sample = sample_of(feeds[0], board.batched, 0)
    off = np.zeros((1, len(board.nodes)), np.bool_)
    (y,) = board.run(sample, off).values()
    lonely = rank(planned, state, [sample], samples=1)
    for index, node in enumerate(board.nodes):
        switches = off.copy()
        switches[0, index] = True
        (changed,) = board.run(sample, switches).values()
        want = np.linalg.norm(changed - y) / np.linalg.norm(y)
        assert lonely.damage[node] == pytest.approx(want, rel=1e-2, abs=1e-6)


def test_a_layer_whose_range_was_squeezed_ranks_first() -> None:
    planned, state = tiny_rounded("mlp")
    assert state.ranges is not None
    victim = next(iter(state.ranges))
    squeezed = dataclasses.replace(
        state.ranges[victim], lo=state.ranges[victim].lo / 8, hi=state.ranges[victim].hi / 8
    )
    state.ranges = {**state.ranges, victim: squeezed}
    reader = next(n for n in planned.graph if any(v and v.name == victim for v in n.inputs))
    assert rank(planned, state, tiny.feeds("mlp", 2)).order[0] == reader.name


def test_an_artifact_good_enough_takes_one_evaluation_and_no_ranking() -> None:
    artifact = compiled("mlp", max_drop=0.5)
    (held,) = said(artifact, Code.DROP_HELD)
    assert held.values["evaluations"] == 1
    assert held.values["returned"] == 0
    assert artifact.report.layers == ()


@pytest.mark.parametrize("name", ["mlp", "residual", "transformer"])
def test_max_drop_holds_with_as_few_evaluations_as_promised(name: str) -> None:
    before = compiled(name).plan.count()["quantized"]
    artifact = compiled(name, max_drop=2e-6)
    (held,) = said(artifact, Code.DROP_HELD)
    assert held.values["drop"] <= 2e-6 + 1e-9
    assert held.values["evaluations"] <= math.log2(before) + 2
    assert 0 < held.values["returned"] <= before
    kept = [item for item in artifact.plan if item.reason and item.reason.code is Code.SENSITIVE]
    assert len(kept) == held.values["returned"]
    assert all(item.reason and item.reason.values["sensitivity"] > 0 for item in kept)


def test_data_is_streamed_once_however_many_artifacts_are_tried() -> None:
    passes = []

    def stream() -> list[dict[str, np.ndarray]]:
        passes.append(1)
        return tiny.feeds("residual", 8)

    recipe = {**FORCED, "max_drop": 2e-6}
    plain: list[int] = []
    qcompile(tiny.build("residual"), TARGET, FORCED, lambda: plain.append(1) or stream())
    once = len(passes)
    passes.clear()
    artifact = qcompile(tiny.build("residual"), TARGET, recipe, stream)
    assert said(artifact, Code.DROP_HELD)[0].values["evaluations"] > 2
    assert len(passes) == once + 1  # the feeds that the metric looks at


def test_keep_float_returns_the_worst_nodes_and_tells_why() -> None:
    artifact = compiled("mlp", keep_float=1)
    rows = {row["node"]: row for row in artifact.report.layers}
    worst = max(rows, key=lambda node: rows[node]["sensitivity"])
    assert [node for node, row in rows.items() if row.get("returned")] == [worst]
    reason = artifact.plan.nodes[worst].reason
    assert reason is not None
    assert reason.code is Code.SENSITIVE
    assert "number 1 of" in reason.message
    assert artifact.plan.count()["quantized"] == len(rows) - 1


def test_keep_float_of_more_nodes_than_there_are_keeps_all_in_float() -> None:
    assert "quantized" not in compiled("mlp", keep_float=99).plan.count()


def test_a_users_plan_is_edited_and_not_decided_anew() -> None:
    plan = compiled("mlp").plan
    artifact = qcompile(
        tiny.build("mlp"), TARGET, {**FORCED, "keep_float": 1}, tiny.feeds("mlp", 8), plan=plan
    )
    codes = [item.reason.code for item in artifact.plan if item.reason]
    assert codes.count(Code.SENSITIVE) == 1
    assert artifact.plan.count()["quantized"] == plan.count()["quantized"] - 1


def test_dynamic_kernels_are_ranked_without_calibration_data() -> None:
    recipe = {**FORCED, "base": "dynamic-int8", "sensitivity": True}
    artifact = qcompile(tiny.build("mlp"), TARGET, recipe)
    assert all(row["sensitivity"] > 0 for row in artifact.report.layers)
    assert len(artifact.report.layers) == artifact.plan.count()["quantized"]


def agreement(run: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> float:
    scores = [float(next(iter(run(feed).values())).mean()) for feed in tiny.feeds("mlp", 2)]
    return 3.0 + sum(scores)


def test_the_users_metric_decides() -> None:
    artifact = compiled("mlp", metric=agreement, max_drop=1e-4)
    (held,) = [*said(artifact, Code.DROP_HELD), *said(artifact, Code.DROP_MISSED)]
    assert "agreement" in held.message
    assert held.values["drop"] <= 1e-4 + 1e-9 or held.code is Code.DROP_MISSED


def failing_after(good: int, failure: Callable[[], float]) -> Callable[[Any], float]:
    calls = []

    def metric(run: Any) -> float:
        calls.append(run)
        return failure() if len(calls) > good else 1.0 / len(calls)

    return metric


def raise_() -> float:
    raise RuntimeError("no labels left")


@pytest.mark.parametrize("failure", [raise_, lambda: math.nan, lambda: math.inf])
@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_a_metric_that_fails_keeps_the_best_artifact_so_far(
    good: int, failure: Callable[[], float], tmp_path: pathlib.Path
) -> None:
    artifact = qcompile(
        tiny.build("mlp"), TARGET, {**FORCED, "max_drop": 0.01}, tiny.feeds("mlp", 8),
        output=tmp_path / "out", metric=failing_after(good, failure),
    )  # fmt: skip
    (told,) = said(artifact, Code.METRIC_FAILED)
    assert ("no labels left" in told.message) or ("wanted a finite number" in told.message)
    assert artifact.plan.count()["quantized"] > 0
    feed = tiny.feeds("mlp", 1)[0]
    for key, array in artifact.run(feed).items():
        np.testing.assert_array_equal(Artifact.load(tmp_path / "out").run(feed)[key], array)


def test_a_failing_metric_is_an_error_when_strict() -> None:
    with pytest.raises(QcError) as caught:
        qcompile(
            tiny.build("mlp"), TARGET, {**FORCED, "max_drop": 0.01}, tiny.feeds("mlp", 8),
            metric=failing_after(1, raise_), strict=True,
        )  # fmt: skip
    assert caught.value.code is Code.METRIC_FAILED


def test_a_drop_that_cannot_be_met_says_how_close_it_came() -> None:
    artifact = compiled("mlp", metric=failing_after(99, raise_), max_drop=0.1)
    (told,) = said(artifact, Code.DROP_MISSED)
    assert "too much" in told.message
    assert told.values["drop"] > 0.1
    assert told.values["score"] == pytest.approx(0.5)  # the first artifact was the best
    assert artifact.plan.count()["quantized"] > 0
    assert said(artifact, Code.NOT_MONOTONE)


@pytest.mark.parametrize(
    ("changes", "metric", "where"),
    [
        ({"max_drop": -0.1}, None, "recipe"),
        ({"max_drop": math.nan}, None, "recipe"),
        ({"keep_float": -1}, None, "recipe"),
        ({"drop": "percent"}, None, "recipe"),
        ({}, agreement, "metric"),
        ({"max_drop": 0.1}, "accuracy", "metric"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    changes: Mapping[str, Any], metric: Any, where: str
) -> None:
    with pytest.raises(QcError) as caught:
        compiled("mlp", metric=metric, **changes)
    assert caught.value.code in (Code.RECIPE_KEY, Code.USAGE)
    assert caught.value.diagnostic.where == where


def test_the_report_keeps_the_ranking(tmp_path: pathlib.Path) -> None:
    artifact = compiled("mlp", sensitivity=True)
    loaded = Artifact.load(artifact.save(tmp_path / "out"))
    assert json.dumps(loaded.report.layers) == json.dumps(artifact.report.layers)

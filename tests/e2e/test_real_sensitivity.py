"""The ranking of real nodes against artifacts in which one node alone is quantized."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from one_node import alone, rounded, spearman
from qcompiler import qcompile
from qcompiler.diagnostics import Code
from qcompiler.plan import Verdict
from qcompiler.sensitivity.ranking import rank
from qcompiler_models import load_model

pytestmark = pytest.mark.slow

TARGET = "cpu-vnni"


def test_efficientnet_nodes_rank_as_when_quantized_one_at_a_time() -> None:
    model = load_model("efficientnet-lite0")
    planned, state = rounded(
        model.onnx(), TARGET, "static-int8", model.calibration(16), check=False
    )
    ranking = rank(planned, state, list(itertools.islice(state.feeds or (), 4)))
    assert ranking.runs <= len(ranking.damage) / 4
    unseen: list[tuple[Mapping[str, Any], Any]] = []

    def watched(feed: Any) -> Any:
        found = model.float_run(feed)
        unseen.append((feed, *found.values()))
        return found

    model.score(watched, watched, limit=8)
    truth = {}
    for node in ranking.damage:
        artifact, errors = alone(planned, state, node), []
        for feed, want in unseen:
            (got,) = artifact(feed).values()
            errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
        truth[node] = float(np.mean(errors))
    assert spearman(list(ranking.damage.values()), list(truth.values())) >= 0.8


def test_efficientnet_holds_a_drop_with_the_evaluations_promised() -> None:
    model = load_model("efficientnet-lite0")
    recipe = {"base": "static-int8", "max_drop": 0.0008, "verify": {"enabled": False}}
    artifact = qcompile(model.onnx(), TARGET, recipe, model.calibration(16), check=False)
    (held,) = [d for d in artifact.report.diagnostics if d.code is Code.DROP_HELD]
    assert held.values["drop"] <= 0.0008
    assert held.values["evaluations"] <= np.log2(len(artifact.report.layers)) + 2
    kept = [d for d in artifact.plan if d.verdict is Verdict.FLOAT and d.reason]
    assert any(d.reason and d.reason.code is Code.SENSITIVE for d in kept)
    assert artifact.plan.count()["quantized"] > 0

"""Smoothing on real models: what static int8 keeps of a transformer, with and without outliers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code
from qcompiler.frontends import open_model
from qcompiler.runtime.session import open_session, run
from qcompiler_models import load_model
from qcompiler_models.outliers import inject_outliers

pytestmark = pytest.mark.slow

TARGET = "cpu-vnni"
FIXED = (0.3, 0.5, 0.7, 0.85)


@functools.cache
def with_outliers() -> Any:
    model = open_model(load_model("minilm").onnx()).model.clone()
    assert inject_outliers(model) == 12
    return model


@functools.cache
def cosine(
    alpha: float | str | None, outliers: bool, criterion: str = "layer", method: str = "auto"
) -> float:
    """Of sentences that were not calibrated on, with those of the float model."""
    return load_model("minilm").cosine(compiled(alpha, outliers, criterion, method).run)


@functools.cache
def compiled(
    alpha: float | str | None, outliers: bool, criterion: str = "layer", method: str = "auto"
) -> Artifact:
    recipe = {
        "base": "static-int8",
        "smoothing": {"alpha": alpha, "criterion": criterion},
        "calibration": {"method": method},
        "verify": {"enabled": False},
    }
    model = with_outliers().clone() if outliers else load_model("minilm").onnx()
    return qcompile(model, TARGET, recipe, load_model("minilm").calibration(), check=False)


def test_injected_outliers_leave_the_float_model_as_it_was() -> None:
    feed = load_model("minilm").calibration(8)[0]
    got, want = run(open_session(with_outliers()), feed), load_model("minilm").float_run(feed)
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=1e-4)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_outliers_destroy_plain_ranges(method: str) -> None:
    assert cosine(None, outliers=True, method=method) <= 0.7


def test_smoothing_needs_no_search_of_ranges() -> None:
    assert cosine("auto", outliers=True, method="minmax") >= 0.9965


def test_outliers_hurt_without_smoothing_and_do_not_with_it() -> None:
    # the search of ranges clips what few weights read, and saves much, but not enough
    assert cosine(None, outliers=True) <= 0.98
    assert cosine("auto", outliers=True) >= 0.9965


def test_the_search_beats_the_best_fixed_exponent() -> None:
    # 0.99839 against 0.99809 of exponent 0.85, on sentences that neither has seen
    best = max(cosine(alpha, outliers=True) for alpha in FIXED)
    assert cosine("auto", outliers=True) > best


def test_one_exponent_per_block_is_nearly_as_good() -> None:
    assert cosine("auto", outliers=True, criterion="block") >= 0.996


def test_factors_fold_into_normalizations_where_nothing_wants_their_values_as_they_are() -> None:
    said = compiled("auto", outliers=True).report.diagnostics
    into = [str(d.values.get("into")) for d in said if d.code is Code.SMOOTHED]
    assert sum(text.startswith("LayerNormalization") for text in into) == 12
    assert sum(text.startswith("MatMul") for text in into) == 6  # attention's output, through V

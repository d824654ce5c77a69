"""Factors of smoothing and their losses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.algorithms.smoothing import SmoothingTrial, factors, levels
from qcompiler.schemes import QSpec

STATIC, WEIGHT = QSpec.parse("u8tz"), QSpec.parse("s8c@1")


def trial(outlier: float, spec: QSpec = STATIC, shared: int = 1) -> SmoothingTrial:
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 64)).astype(np.float32)
    rows[:, 5] *= outlier
    weights = [random.normal(size=(64, 96)).astype(np.float32) for _ in range(shared)]
    for weight in weights:
        weight[5] /= outlier
    return SmoothingTrial(rows, rows.min(axis=0), rows.max(axis=0), weights, spec, WEIGHT)


@pytest.mark.parametrize("spec", ["u8tz", "s8t", "u8tzd"])
def test_an_outlier_channel_costs_much_and_every_sane_exponent_removes_it(spec: str) -> None:
    found = trial(80.0, QSpec.parse(spec))
    without = found.without().loss
    assert found.exponent(0.5).loss < without / 100
    assert found.level(0.9).loss < without / 100


def test_without_outliers_there_is_nothing_to_gain() -> None:
    found = trial(1.0)
    best = min(found.exponent(a / 10).loss for a in range(11))
    assert best > found.without().loss / 2


def test_a_row_of_its_own_scale_suffers_from_outlier_channels_too() -> None:
    found = trial(80.0, QSpec.parse("u8kd"))
    assert found.exponent(0.5).loss < found.without().loss / 20


def test_dead_channels_keep_a_factor_of_one() -> None:
    magnitude, weight = np.array([0.0, 1.0, 4.0]), np.array([1.0, 1.0, 1.0])
    assert factors(magnitude, weight, 0.5, None)[0] == 1.0
    assert levels(magnitude, 0.5, None)[0] == 1.0


def test_tied_channels_share_a_factor() -> None:
    ties = np.array([0, 1, 0, 1])
    for found in (
        factors(np.array([1.0, 2.0, 3.0, 0.5]), np.ones(4), 0.7, ties),
        levels(np.array([1.0, 2.0, 3.0, 0.5]), 0.1, ties),
    ):
        assert found[0] == found[2]
        assert found[1] == found[3]


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=20),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_factors_are_finite_and_positive_whatever_was_seen(
    seen: list[float], alpha: float, quantile: float
) -> None:
    magnitude, weight = np.array(seen), np.array(seen[::-1])
    for found in (factors(magnitude, weight, alpha, None), levels(magnitude, quantile, None)):
        assert np.isfinite(found).all()
        assert (found > 0).all()

"""Factors of smoothing and their losses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.algorithms.smoothing import SmoothingTrial, factors, levels
from qcompiler.numerics.extremes import Extremes
from qcompiler.schemes import QSpec

STATIC, WEIGHT = QSpec.parse("u8tz"), QSpec.parse("s8c@1")


def seen(*parts: np.ndarray) -> Extremes:
    found = Extremes(parts[0].shape[1])
    found.extend(np.stack([x.min(axis=0) for x in parts]), np.stack([x.max(axis=0) for x in parts]))
    return found


def trial(outlier: float, spec: QSpec = STATIC, shared: int = 1) -> SmoothingTrial:
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 64)).astype(np.float32)
    rows[:, 5] *= outlier
    weights = [random.normal(size=(64, 96)).astype(np.float32) for _ in range(shared)]
    for weight in weights:
        weight[5] /= outlier
    return SmoothingTrial(rows, seen(rows), weights, spec, WEIGHT)


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


def test_a_range_that_leaves_no_room_for_other_data_is_seen() -> None:
    random = np.random.default_rng(0)
    parts = random.uniform(-4, 4, size=(8, 50, 64)).astype(np.float32)
    parts[:, :, 32:] *= 1e-3  # half of the channels are nearly still
    parts[3, 7, 40] = 3.0  # one of them wakes up in one part
    rows = parts.reshape(-1, 64)
    weights = [random.normal(size=(64, 96)).astype(np.float32)]
    parted = SmoothingTrial(rows, seen(*parts), weights, STATIC, WEIGHT)
    whole = SmoothingTrial(rows, seen(rows), weights, STATIC, WEIGHT)
    # as it is there is room for what wakes; levelled by the other parts alone there is none
    assert parted.without().loss < 1.1 * whole.without().loss
    assert parted.level(0.1).loss > 3 * whole.level(0.1).loss


@pytest.mark.parametrize("spec", ["u8kd", "u8tzd"])
def test_a_range_found_at_run_time_gets_wider_instead(spec: str) -> None:
    random = np.random.default_rng(0)
    parts = random.normal(size=(4, 40, 16)).astype(np.float32)
    weights = [random.normal(size=(16, 8)).astype(np.float32)]
    calm = SmoothingTrial(parts.reshape(-1, 16), seen(*parts), weights, QSpec.parse(spec), WEIGHT)
    loud = parts.copy()
    loud[2, 0, 3] = 300.0  # of the extremes, not of the sample
    wild = SmoothingTrial(parts.reshape(-1, 16), seen(*loud), weights, QSpec.parse(spec), WEIGHT)
    assert wild.without().loss > 2 * calm.without().loss


def test_one_part_tells_nothing_of_other_data() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    weight = np.eye(16, dtype=np.float32)
    once = SmoothingTrial(rows, seen(rows), [weight], STATIC, WEIGHT)
    twice = SmoothingTrial(rows, seen(rows, rows), [weight], STATIC, WEIGHT)
    assert once.level(0.5).loss == twice.level(0.5).loss


def test_the_smallest_channels_count_as_a_low_quantile() -> None:
    magnitude = np.array([1e-7, 1e-3, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    found = factors(magnitude, np.ones(8), 1.0, None)
    assert found[0] == found[1]
    assert found[2] / found[1] < 1.4  # the quantile lies between 1e-3 and 1
    assert found[7] / found[6] == pytest.approx(2.0)


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


def test_outputs_with_large_weights_are_judged_though_most_outputs_are_not() -> None:
    random = np.random.default_rng(1)
    rows = random.normal(size=(120, 48)).astype(np.float32)
    rows[:, 7] *= 30.0
    weight = random.normal(size=(48, 2000)).astype(np.float32)
    weight[:, [3, 700, 1501]] *= 40.0  # most of the error
    for alpha in (0.5, 0.9):
        found = SmoothingTrial(rows, seen(rows), [weight], STATIC, WEIGHT)
        s = found.exponent(alpha).factors.astype(np.float32)
        scaled = weight * s[:, None]
        step = np.abs(scaled).max(axis=0) / 127
        error = (rows / s) @ (np.rint(scaled / step) * step - scaled)
        exact = float(np.square(error, dtype=np.float64).sum())
        assert found._weight_error(rows / s, s) == pytest.approx(exact, rel=0.15)

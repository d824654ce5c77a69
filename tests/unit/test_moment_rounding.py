"""Rounding weights for the inputs they meet."""

import itertools

import numpy as np
import pytest

from qcompiler.algorithms.moment_rounding import output_error, round_by_moment
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.schemes import QSpec

S8 = QSpec.parse("s8c@0")


def moment_of(rows: np.ndarray) -> np.ndarray:
    return (rows.T @ rows / len(rows))[None].astype(np.float32)


def correlated(rng: np.random.Generator, size: int) -> np.ndarray:
    base = rng.standard_normal((2000, 1)) + 2.0
    return (base + 0.3 * rng.standard_normal((2000, size))).astype(np.float32)


@pytest.mark.parametrize(("outputs", "size", "share"), [(7, 5, 0.8), (12, 40, 0.3), (20, 100, 0.3)])
def test_output_error_falls_and_the_report_of_it_is_true(
    outputs: int, size: int, share: float
) -> None:
    rng = np.random.default_rng(size)
    weight = rng.standard_normal((outputs, size)).astype(np.float32)
    rows = correlated(rng, size)
    start = round_to_nearest(weight, S8)
    found = round_by_moment(weight, start, moment_of(rows), damping=1e-6)

    def error(q: np.ndarray) -> float:
        return float(np.square(rows.astype(np.float64) @ (q - weight).T).mean(axis=0).sum())

    before, after = error(start.dequantize()), error(found.dequantize())
    assert after < share * before
    told = [output_error(weight, item, moment_of(rows)) for item in (start, found)]
    np.testing.assert_allclose(told, (before, after), rtol=0.02)
    np.testing.assert_array_equal(found.scale, start.scale)
    assert found.q.dtype == start.q.dtype
    assert np.abs(found.q).max() <= 127


def test_depthwise_kernels_have_a_moment_each() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 1, 3, 3)).astype(np.float32)
    moments = np.concatenate([moment_of(correlated(rng, 9)) for _ in range(6)])
    start = round_to_nearest(weight, S8)
    found = round_by_moment(weight, start, moments)
    told = [output_error(weight, item, moments) for item in (start, found)]
    assert told[1] < 0.5 * told[0]
    for channel in range(6):
        alone = round_by_moment(
            weight[channel : channel + 1],
            round_to_nearest(weight[channel : channel + 1], S8),
            moments[channel : channel + 1],
        )
        np.testing.assert_array_equal(alone.q[0], found.q[channel])


def test_a_small_kernel_comes_near_the_best_of_all_roundings() -> None:
    rng = np.random.default_rng(5)
    ranks = []
    for _ in range(20):
        weight = rng.standard_normal((1, 6)).astype(np.float32)
        moment = moment_of(correlated(rng, 6))
        start = round_to_nearest(weight, S8)
        found = round_by_moment(weight, start, moment, damping=0.01, sweeps=4)
        floor = np.floor(weight / start.scale)
        damped = moment[0] + 0.01 * np.trace(moment[0]) / 6 * np.eye(6)
        errors = [
            float(e @ damped @ e)
            for up in itertools.product((0, 1), repeat=6)
            for e in [((floor + np.array(up)) * start.scale - weight)[0]]
        ]
        damped_moment = damped[None].astype(np.float32)
        before, after = (output_error(weight, item, damped_moment) for item in (start, found))
        assert after <= before * (1 + 1e-5)
        ranks.append(np.mean(np.array(errors) < after * (1 - 1e-4)))
    assert np.mean(ranks) < 0.1


def test_a_diagonal_moment_leaves_the_nearest_integers() -> None:
    weight = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    start = round_to_nearest(weight, S8)
    for moment in (np.eye(8), np.zeros((8, 8))):
        found = round_by_moment(weight, start, moment[None].astype(np.float32))
        np.testing.assert_array_equal(found.q, start.q)


def test_what_does_not_fit_is_refused() -> None:
    weight = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        round_by_moment(weight, round_to_nearest(weight, S8), np.ones((1, 7, 7), np.float32))
    with pytest.raises(ValueError, match="symmetric"):
        round_by_moment(
            weight, round_to_nearest(weight, QSpec.parse("u8c@0z")), np.ones((1, 8, 8), np.float32)
        )

"""Statistics of a divided activation, without seeing it again."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibration.layers import Layer
from qcompiler.calibration.rescale import divided
from qcompiler.calibration.summary import TensorSummary
from qcompiler.recipe import CalibrationOptions
from qcompiler.schemes import QSpec

LAYER = Layer("m", "MatMul", np.eye(6, 4, dtype=np.float32))
FACTORS = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])


def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(400, 6)).astype(np.float32)


def summary(x: np.ndarray) -> TensorSummary:
    found = TensorSummary.start("x", x, (LAYER,), 0.1)
    found.update(x)
    return found


def test_what_is_kept_by_channel_is_what_the_divided_activation_gives() -> None:
    x = rows()
    seen, want = divided(summary(x), FACTORS), summary((x / FACTORS).astype(np.float32))
    assert seen.channels is not None
    assert want.channels is not None
    np.testing.assert_allclose(seen.channels.mean, want.channels.mean, atol=1e-6)
    np.testing.assert_allclose(seen.channels.hi, want.channels.hi)
    assert (seen.extremes.lo, seen.extremes.hi) == (want.extremes.lo, want.extremes.hi)
    assert seen.histogram.total == pytest.approx(want.histogram.total, rel=0.05)


@pytest.mark.parametrize(
    "method", ["auto", "minmax", "moving-average", "percentile", "mse", "entropy"]
)
def test_every_method_finds_nearly_the_range_of_the_divided_activation(method: str) -> None:
    x, spec = rows(), QSpec.parse("u8tz")
    options = CalibrationOptions(method=method)  # type: ignore[arg-type]
    got = divided(summary(x), FACTORS).range(spec, options, (LAYER,))
    want = summary((x / FACTORS).astype(np.float32)).range(spec, options, (LAYER,))
    assert got.lo == pytest.approx(want.lo, rel=0.15)
    assert got.hi == pytest.approx(want.hi, rel=0.15)


def test_extremes_that_the_sample_lacks_are_in_the_tails() -> None:
    x = np.random.default_rng(1).normal(size=(20_000, 6)).astype(np.float32)
    x[11, 2] = 50.0
    seen = divided(summary(x), FACTORS)
    assert seen.reservoir is not None
    assert seen.reservoir.rows.max() < 25.0
    assert seen.histogram.distribution(seen.extremes.lo, seen.extremes.hi).right[-1] == 25.0


def test_how_far_a_channel_reaches_on_other_data() -> None:
    random = np.random.default_rng(1)
    parts = random.uniform(-1, 1, size=(16, 30, 6)).astype(np.float32)
    parts[5, 3, 2] = 6.0
    channels, factors = summary(parts).channels, np.full(6, 6.0)
    assert channels is not None
    # six times what the other parts have, so with a range up to 6 another part may have 36
    assert channels.extremes.reach[1][2] == pytest.approx(36.0, rel=0.01)
    # levelled by what all parts have nothing stands out any more; levelled by what the others
    # have, the part that was left out reaches six times as far as they
    levels = np.where(np.arange(6) == 2, 6.0, 1.0)
    assert divided(summary(parts), levels).channels is not None
    others = channels.extremes.divided(levels, np.ones(6))
    assert others.hi.max() == pytest.approx(1.0, rel=0.01)
    assert others.reach[1][2] == pytest.approx(6.0, rel=0.01)
    # the same factors for all parts change nothing but the unit
    assert channels.extremes.divided(factors).reach[1][2] == pytest.approx(6.0, rel=0.01)


def test_a_range_leaves_room_for_what_one_part_reaches_beyond_the_others() -> None:
    random, spec = np.random.default_rng(1), QSpec.parse("u8tz")
    parts = random.normal(size=(8, 30, 6)).astype(np.float32)
    parts[:, :, 1] *= 1e-3
    parts[5, 3, 1] = 2.0
    levels, of_others = np.ones(6), np.ones(6)
    levels[1], of_others[1] = 0.5, 1e-3  # as if the quiet channel had been raised
    options = CalibrationOptions()
    alike = divided(summary(parts), levels).range(spec, options, (LAYER,))
    apart = divided(summary(parts), levels, of_others).range(spec, options, (LAYER,))
    assert apart.hi >= alike.hi
    assert apart.hi == pytest.approx(summary(parts / levels.astype(np.float32)).extremes.hi)


def test_the_summary_that_is_divided_stays_as_it_was() -> None:
    before = summary(rows())
    extremes = before.extremes.hi
    divided(before, FACTORS)
    assert before.extremes.hi == extremes


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="channels"):
        divided(summary(rows()), np.ones(5))

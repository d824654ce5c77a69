"""Laws of the summaries: parts merge into the whole, state is bounded."""

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.calibration.calibrators import MinMax, MovingAverage
from qcompiler.calibration.histogram import Histogram
from qcompiler.calibration.moments import PatchMoment
from qcompiler.calibration.rows import Channels, Reservoir

Floats = npt.NDArray[np.float32]
batches = st.lists(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=9),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    min_size=1,
    max_size=6,
)


def ends(part: Floats) -> tuple[float, float]:
    return float(part.min()), float(part.max())


@given(batches, st.integers(0, 6))
def test_merged_histograms_are_the_histogram_of_the_whole(parts: list[Floats], cut: int) -> None:
    whole, first, second = Histogram(), Histogram(), Histogram()
    for index, part in enumerate(parts):
        whole.update(part)
        (first if index < cut else second).update(part)
    first.merge(second)
    np.testing.assert_array_equal(first.counts, whole.counts)
    assert whole.total == sum(part.size for part in parts)


@given(batches)
def test_every_value_lies_in_its_bin(parts: list[Floats]) -> None:
    x = np.concatenate([part.reshape(-1) for part in parts])
    histogram = Histogram()
    histogram.update(x)
    found = histogram.distribution(float(x.min()), float(x.max()))
    assert found.total == x.size
    assert (found.left <= found.right).all()
    assert (np.diff(found.left) >= 0).all()
    tiny = 1e-40  # the width of the bin of zero
    for value in x.astype(np.float64):
        inside = (found.left - tiny <= value) & (value <= found.right + tiny)
        assert inside.any()
    width = found.right - found.left
    assert (width <= np.abs(found.right + found.left) / 2 / 64 + tiny).all()


@given(batches, st.integers(0, 6))
def test_merged_extremes_are_those_of_the_whole(parts: list[Floats], cut: int) -> None:
    whole, first, second = MinMax(), MinMax(), MinMax()
    for index, part in enumerate(parts):
        whole.extend(*ends(part))
        (first if index < cut else second).extend(*ends(part))
    first.merge(second)
    assert (first.lo, first.hi) == (whole.lo, whole.hi)
    assert whole.lo == min(float(part.min()) for part in parts)


@given(
    st.lists(hnp.arrays(np.float32, 3, elements=st.floats(-100, 100, width=32)), max_size=8),
    st.integers(0, 8),
    st.floats(0.01, 1.0),
)
def test_merged_moving_averages_are_that_of_the_whole(
    parts: list[Floats], cut: int, momentum: float
) -> None:
    whole, first, second = (MovingAverage(momentum) for _ in range(3))
    for index, part in enumerate(parts):
        whole.extend(*ends(part))
        (first if index < cut else second).extend(*ends(part))
    first.merge(second)
    assert first.batches == whole.batches
    np.testing.assert_allclose(first.mean, whole.mean, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 20))
def test_a_reservoir_holds_rows_of_the_stream_and_no_more_than_its_capacity(
    first: int, second: int, capacity: int
) -> None:
    one, two = Reservoir(capacity, seed=1), Reservoir(capacity, seed=2)
    rows = np.arange(first + second, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    one.update(rows[:first], -1)
    if second:
        two.update(rows[first:], -1)
    one.merge(two)
    assert len(one.rows) == min(capacity, first + second)
    assert len(np.unique(one.rows[:, 0])) == len(one.rows)
    assert (np.diff(one.keys) >= 0).all()


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_channels_merge_into_the_whole(seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((6, 5, 3, 4)).astype(np.float32)
    whole, first, second = Channels(5), Channels(5), Channels(5)
    assert whole.update(x, 1) == (float(x.min()), float(x.max()))
    first.update(x[:2], 1)
    second.update(x[2:], 1)
    first.merge(second)
    np.testing.assert_allclose(first.mean, whole.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(whole.mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first.lo, x.min((0, 2, 3)))
    np.testing.assert_array_equal(first.hi, whole.hi)
    np.testing.assert_array_equal(first.extremes.next_hi, whole.extremes.next_hi)
    np.testing.assert_array_equal(first.extremes.next_lo, whole.extremes.next_lo)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_extremes_without_a_part_are_those_of_all_others(parts: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-9, 9, (parts, 7, 4)).astype(np.float32)
    channels = Channels(4)
    channels.update(x, -1)
    lo, hi = channels.extremes.left_out
    for channel in range(4):
        others = np.delete(x[:, :, channel], x[:, :, channel].max(axis=1).argmax(), axis=0)
        assert hi[channel] == (others.max() if parts > 1 else x[..., channel].max())
        others = np.delete(x[:, :, channel], x[:, :, channel].min(axis=1).argmin(), axis=0)
        assert lo[channel] == (others.min() if parts > 1 else x[..., channel].min())


def test_a_reservoir_is_uniform_over_the_stream() -> None:
    hits = np.zeros(200)
    for seed in range(300):
        reservoir = Reservoir(20, seed)
        for start in range(0, 200, 40):
            rows = np.arange(start, start + 40, dtype=np.float32)[:, None]
            reservoir.update(rows, -1)
        hits[reservoir.rows[:, 0].astype(int)] += 1
    # 300 draws of 1/10 for each row: mean 30, standard deviation 5.2
    by_batch = hits.reshape(5, 40).mean(axis=1)
    np.testing.assert_allclose(by_batch, 30, atol=4 * 5.2 / np.sqrt(40))


def test_patch_moments_are_those_of_im2col() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 5, 6)).astype(np.float32)
    moment = PatchMoment(4, 2, (3, 3), (1, 1), seed=0)
    moment.update(x)  # five rows, eight strips wanted: all patches are drawn
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    wanted = np.zeros((2, 18, 18))
    for row in range(5):
        for column in range(6):
            for group in range(2):
                patch = padded[2 * group : 2 * group + 2, row : row + 3, column : column + 3]
                wanted[group] += np.outer(patch.reshape(-1), patch.reshape(-1))
    np.testing.assert_allclose(moment.mean, wanted / 30, rtol=1e-4, atol=1e-5)

"""Percentile, entropy and least-squares ranges against brute force on the values themselves."""

import itertools

import numpy as np
import pytest

from qcompiler.calibration.clipping import entropy_range, mse_range, percentile_range, squared_error
from qcompiler.calibration.histogram import Distribution, Histogram
from qcompiler.numerics.affine import dequantize, quantize, range_to_params
from qcompiler.schemes import QSpec

U8, S8 = QSpec.parse("u8tz"), QSpec.parse("s8t")
# a bin is at most 1/128 of its distance from zero wide
BIN = 1 / 128


def values(name: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = {
        "normal": rng.standard_normal(20_000),
        "skewed": rng.gamma(1.0, 2.0, 20_000),
        "relu": np.maximum(rng.standard_normal(20_000), 0),
        "outliers": np.concatenate((rng.standard_normal(20_000), [90.0, -40.0])),
        "negative": -rng.gamma(2.0, 0.01, 20_000),
    }[name]
    return x.astype(np.float32)


NAMES = ("normal", "skewed", "relu", "outliers", "negative")


def distribution(x: np.ndarray) -> Distribution:
    histogram = Histogram()
    histogram.update(x)
    return histogram.distribution(float(x.min()), float(x.max()))


def brute_error(x: np.ndarray, lo: float, hi: float, spec: QSpec) -> float:
    scale, zero = range_to_params(np.float32(lo), np.float32(hi), spec)  # type: ignore[arg-type]
    back = dequantize(quantize(x, scale, zero, spec.qmin, spec.qmax), scale, zero)
    return float(np.square(x.astype(np.float64) - back).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_that_of_the_sorted_values_to_a_bin(name: str, percentile: float) -> None:
    x = values(name)
    lo, hi = percentile_range(distribution(x), U8, percentile)
    tail = (100 - percentile) / 2
    assert_between_neighbours(lo, x, tail)
    assert_between_neighbours(hi, x, 100 - tail)
    lo, hi = percentile_range(distribution(x), S8, percentile)
    assert_between_neighbours(hi, np.abs(x), percentile)
    assert lo == -hi


def assert_between_neighbours(found: float, x: np.ndarray, percentile: float) -> None:
    """Within a bin of the values next to the percentile: in a sparse tail these lie far apart."""
    ordered = np.sort(x)
    place = percentile / 100 * len(x)
    below = ordered[max(0, int(place) - 1)]
    above = ordered[min(len(x) - 1, int(np.ceil(place)) + 1)]
    assert below - 2 * BIN * abs(below) <= found <= above + 2 * BIN * abs(above)


def test_the_whole_percentile_is_the_extremes() -> None:
    x = values("outliers")
    assert percentile_range(distribution(x), U8, 100.0) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", [U8, S8], ids=str)
def test_expected_squared_error_is_that_of_quantizing_the_values(name: str, spec: QSpec) -> None:
    x = values(name)
    found = distribution(x)
    extremes = float(x.min()), float(x.max())
    ranges = [(extremes[0] * a, extremes[1] * b) for a, b in ((1, 1), (0.7, 0.7), (0.9, 0.3))]
    lo, hi = np.array([(min(a, 0.0), max(b, 0.0)) for a, b in ranges]).T
    if spec.symmetric:
        hi = np.maximum(-lo, hi)
        lo = -hi
    errors = squared_error(found, lo, hi, spec)
    wanted = [brute_error(x, *item, spec) for item in zip(lo, hi, strict=True)]
    np.testing.assert_allclose(errors, wanted, rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", [U8, S8], ids=str)
def test_mse_range_is_as_good_as_a_brute_force_grid(name: str, spec: QSpec) -> None:
    x = values(name)
    lo, hi = mse_range(distribution(x), spec)
    full = (min(float(x.min()), 0.0), max(float(x.max()), 0.0))
    grid = [brute_error(x, full[0] * a, full[1] * a, spec) for a in np.linspace(1, 0.2, 17)]
    assert brute_error(x, lo, hi, spec) <= 1.02 * min(grid)
    assert full[0] <= lo or spec.symmetric
    assert hi <= max(full[1], -full[0])


def brute_divergence(x: np.ndarray, bound: float, bins: int, levels: int, top: float) -> float:
    """Migacz's algorithm, bin by bin, on |x| with zeros left out and exact end bins."""
    counts, _ = np.histogram(np.abs(x[x != 0]), bins=bins, range=(0.0, top))
    last = round(bound / top * bins)
    inside = counts[:last].astype(float)
    p = inside.copy()
    p[-1] += counts[last:].sum()
    q = np.zeros(last)
    starts = np.linspace(0, last, min(levels, last) + 1).astype(int)
    for begin, end in itertools.pairwise(starts):
        filled = inside[begin:end] > 0
        if filled.any():
            q[begin:end][filled] = inside[begin:end].sum() / filled.sum()
    q[0], q[-1] = inside[0], inside[-1]
    p, q = p + 1e-4, q + 1e-4
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("name", ["normal", "skewed", "relu"])
def test_entropy_range_is_as_good_as_a_brute_force_search(name: str) -> None:
    x = np.abs(values(name))
    top, bins, levels = float(x.max()), 1024, 128
    _, hi = entropy_range(distribution(x), S8, bins)
    shares = np.linspace(1.0, levels / bins, 64)
    best = min(brute_divergence(x, top * share, bins, levels, top) for share in shares)
    # the histogram spreads values evenly within its bins, so the divergences differ a little
    assert brute_divergence(x, hi, bins, levels, top) <= 1.3 * best + 1e-3


def test_entropy_keeps_the_peaks_that_clip_makes() -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(2.0, 4.0, 50_000), 0, 6).astype(np.float32)
    lo, hi = entropy_range(distribution(x), U8, 2048)
    assert lo == 0.0
    assert hi > 5.9


def test_ranges_of_one_value_hold_it() -> None:
    found = distribution(np.full(10, 2.5, np.float32))
    for _, hi in (
        percentile_range(found, U8, 99.999),
        entropy_range(found, U8, 2048),
        mse_range(found, U8),
    ):
        assert hi >= 2.5 * (1 - BIN)


@pytest.mark.parametrize("seed", range(4))
def test_magnitudes_are_counted_as_those_of_the_absolute_values(seed: int) -> None:
    x = np.tanh(2 * np.random.default_rng(seed).standard_normal(20_000)).astype(np.float32)
    x[:50] = 0.0
    found, want = distribution(x).magnitudes(), distribution(np.abs(x))
    np.testing.assert_array_equal(found.left, want.left)
    np.testing.assert_array_equal(found.right, want.right)
    np.testing.assert_array_equal(found.count, want.count)
    assert (found.linear(0.0, 1.0, 2048) >= 0).all()


def test_entropy_of_a_symmetric_range_divides_by_no_negative_count() -> None:
    x = np.tanh(2 * np.random.default_rng(1).standard_normal(131_072)).astype(np.float32)
    with np.errstate(invalid="raise", divide="raise"):
        lo, hi = entropy_range(distribution(x), S8)
    assert lo == -hi
    assert 0.5 < hi <= 1.0

"""Numbers near the limits of float32 calibrate and round like any others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from by_hand import open_text
from qcompiler import qcompile
from qcompiler.algorithms.rtn import CLIP_RATIOS, round_to_nearest
from qcompiler.calibration.rows import Channels
from qcompiler.numerics.magnitude import unit_of
from qcompiler.schemes import QSpec

WIDTH = 32


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(over="warn", invalid="warn", divide="warn"):
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.mark.parametrize("method", ["auto", "mse", "entropy", "percentile"])
@pytest.mark.parametrize(
    ("weight", "x"), [(1.0, 1e30), (1e30, 1.0), (3e18, 1e18), (1e15, 1e-30), (1e-30, 1.0)]
)
def test_static_ranges_are_found_at_any_magnitude(weight: float, x: float, method: str) -> None:
    rng = np.random.default_rng(0)
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[4,{WIDTH}] x) => (float[4,{WIDTH}] y) {{ y = MatMul(x, w) }}"""
    w = (rng.normal(0, 0.1, (WIDTH, WIDTH)) * weight).astype(np.float32)
    feeds = [{"x": (rng.normal(0, 1, (4, WIDTH)) * x).astype(np.float32)} for _ in range(3)]
    recipe = {"base": "static-int8", "force": True, "calibration": {"method": method}}
    artifact = qcompile(open_text(text, {"w": w}), "cpu-vnni", recipe, feeds)
    (found,) = artifact.run(feeds[0]).values()
    wanted = feeds[0]["x"].astype(np.float64) @ w
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("exponent", [-90, 90])
@pytest.mark.parametrize("spec", ["s4g16@0", "u4g16@0z"])
def test_the_clip_search_does_not_depend_on_magnitude(spec: str, exponent: int) -> None:
    weight = np.random.default_rng(1).standard_t(3, (64, 8)).astype(np.float32)
    factor = np.float32(2.0**exponent)
    plain = round_to_nearest(weight, QSpec.parse(spec), clip_ratios=CLIP_RATIOS)
    scaled = round_to_nearest(weight * factor, QSpec.parse(spec), clip_ratios=CLIP_RATIOS)
    assert np.array_equal(plain.q, scaled.q)
    assert np.array_equal(plain.scale * factor, scaled.scale)


def test_sums_of_channels_stay_finite() -> None:
    for axis, shape in ((-1, (500, 3)), (1, (5, 3, 100))):
        channels = Channels(3)
        channels.update(np.full(shape, 3e38, np.float32), axis)
        assert np.allclose(channels.mean, 3e38)


@pytest.mark.parametrize("largest", [0.0, 1.0, 1e-45, 1e-30, 5e11, 1e30, 3.4e38])
def test_the_unit_is_a_power_of_two_and_1_for_ordinary_numbers(largest: float) -> None:
    x = np.array([-largest, largest / 3], np.float32)
    unit = unit_of(x)
    assert np.frexp(unit)[0] == 0.5
    assert np.abs(x / unit).max() < 2.0**41
    if 1e-12 < largest < 1e12 or largest == 0.0:
        assert unit == 1.0

"""Ranges of 8-bit floats."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.calibration.summary import TensorSummary
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.affine import range_to_params, round_trip
from qcompiler.recipe import CalibrationOptions
from qcompiler.schemes import QSpec

E4M3 = QSpec.parse("e4m3t")


def summary_of(x: np.ndarray) -> TensorSummary:
    summary = TensorSummary.start("x", x, (), 0.1)
    summary.update(x)
    return summary


def error_of(x: np.ndarray, lo: float, hi: float, spec: QSpec) -> float:
    scale, zero = range_to_params(np.float32(lo), np.float32(hi), spec)
    return float(np.square(x - round_trip(x, scale, zero, spec)).mean())


@pytest.mark.parametrize("word", ["e4m3t", "e5m2t"])
@pytest.mark.parametrize("method", ["auto", "mse", "percentile", "minmax", "moving-average"])
def test_every_method_but_entropy_gives_a_usable_range(word: str, method: str) -> None:
    x = np.random.default_rng(0).normal(0, 1, (64, 128)).astype(np.float32)
    spec = QSpec.parse(word)
    found = summary_of(x).range(spec, CalibrationOptions(method=method), ())
    assert error_of(x, found.lo, found.hi, spec) < (0.002 if word == "e4m3t" else 0.008)


@pytest.mark.parametrize("seed", range(4))
def test_mse_is_never_worse_than_the_extremes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(3, (64, 256)) * rng.uniform(0.1, 9)).astype(np.float32)
    summary = summary_of(x)
    mse = summary.range(E4M3, CalibrationOptions(method="mse"), ())
    extremes = summary.range(E4M3, CalibrationOptions(method="minmax"), ())
    assert error_of(x, mse.lo, mse.hi, E4M3) <= error_of(x, extremes.lo, extremes.hi, E4M3) * 1.001


def test_mse_widens_a_range_where_steps_are_finer() -> None:
    """Mass just above a power of two of the scale has coarse steps; a wider range moves it."""
    x = np.random.default_rng(1).uniform(0.95, 1.0, (64, 64)).astype(np.float32)
    found = summary_of(x).range(E4M3, CalibrationOptions(method="mse"), ())
    assert found.hi > 1.0
    assert error_of(x, found.lo, found.hi, E4M3) < error_of(x, -1.0, 1.0, E4M3)


def test_entropy_is_refused_for_floats() -> None:
    summary = summary_of(np.ones((4, 4), np.float32))
    with pytest.raises(QcError, match="evenly spaced") as error:
        summary.range(E4M3, CalibrationOptions(method="entropy"), ())
    assert error.value.code is Code.RECIPE_KEY

"""8-bit floats: rounding, saturation, weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.numerics.affine import dequantize, quantize_as, range_to_params, round_trip
from qcompiler.numerics.float8 import is_float8, round_float8, to_float8
from qcompiler.schemes import QSpec

TYPES = [ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2]
ROWS = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-1e6, 1e6, width=32),
)


def values_of(dtype: ir.DataType) -> np.ndarray:
    """Every finite value of the type, ascending."""
    codes = np.arange(256, dtype=np.uint8).view(dtype.numpy()).astype(np.float32)
    return np.unique(codes[np.isfinite(codes)])


@pytest.mark.parametrize(("dtype", "largest"), list(zip(TYPES, (448, 57344), strict=True)))
def test_the_largest_value_is_the_qmax_of_the_spec(dtype: ir.DataType, largest: int) -> None:
    assert values_of(dtype)[-1] == largest == QSpec(dtype).qmax == -QSpec(dtype).qmin


@pytest.mark.parametrize("dtype", TYPES)
@given(x=ROWS)
def test_rounding_takes_the_nearest_value(dtype: ir.DataType, x: np.ndarray) -> None:
    values = values_of(dtype).astype(np.float64)
    found = round_float8(x, dtype).astype(np.float64)
    best = np.abs(values[None] - x[:, None].astype(np.float64)).min(axis=1)
    np.testing.assert_array_equal(np.abs(found - x), best)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_tie_goes_to_the_even_code(dtype: ir.DataType) -> None:
    values = values_of(dtype)
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    codes = to_float8(middles, dtype).view(np.uint8)
    assert not (codes & 1).any()


@pytest.mark.parametrize("dtype", TYPES)
@given(x=ROWS)
def test_rounding_is_odd_monotone_and_idempotent(dtype: ir.DataType, x: np.ndarray) -> None:
    once = round_float8(np.sort(x), dtype)
    assert (np.diff(once) >= 0).all()
    np.testing.assert_array_equal(round_float8(once, dtype), once)
    np.testing.assert_array_equal(round_float8(-np.sort(x), dtype), -once)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_lies_outside_saturates_and_nan_stays(dtype: ir.DataType) -> None:
    largest = QSpec(dtype).qmax
    x = np.array([1e30, np.inf, -np.inf, largest * 1.01, np.nan], np.float32)
    found = round_float8(x, dtype)
    np.testing.assert_array_equal(found, [largest, largest, -largest, largest, np.nan])


@pytest.mark.parametrize("word", ["e4m3", "e5m2"])
@given(bound=st.floats(2.0**-60, 2.0**60, width=32))
def test_the_bound_of_a_range_is_exact_up_to_float32(word: str, bound: float) -> None:
    spec = QSpec.parse(f"{word}t")
    scale, zero = range_to_params(np.float32(-bound), np.float32(bound / 3), spec)
    assert zero == 0
    x = np.array([bound, -bound, 0.0], np.float32)
    np.testing.assert_allclose(round_trip(x, scale, zero, spec), x, rtol=3e-7)


@pytest.mark.parametrize("word", ["e4m3t", "e5m2t", "s8t", "u8tz", "u16tz", "s16t"])
@given(x=ROWS, scale=st.floats(2.0**-10, 2.0**10, width=32))
def test_a_round_trip_is_storing_and_reading(word: str, x: np.ndarray, scale: float) -> None:
    spec = QSpec.parse(word)
    step, zero = np.float32(scale), np.asarray(0 if spec.is_signed else 77, np.int32)
    stored = quantize_as(x, step, zero, spec)
    assert is_float8(stored) == spec.is_float8
    np.testing.assert_array_equal(dequantize(stored, step, zero), round_trip(x, step, zero, spec))


@pytest.mark.parametrize("word", ["e4m3t", "e4m3c@0", "e4m3c@1", "e5m2c@-1"])
def test_weights_are_rounded_with_the_bound_at_the_largest_value(word: str) -> None:
    spec = QSpec.parse(word)
    weight = np.random.default_rng(0).normal(0, 3, (24, 40)).astype(np.float32)
    rounded = round_to_nearest(weight, spec)
    assert rounded.q.dtype == spec.dtype.numpy()
    assert rounded.zero_point is None
    assert np.abs(rounded.q.astype(np.float32)).max() == spec.qmax
    share = 2.0**-4 if word.startswith("e4m3") else 2.0**-3  # half a step of the mantissa
    error = np.abs(rounded.dequantize() - weight)
    floor = rounded.scale * 2.0**-9  # of the subnormal numbers
    assert (error <= np.maximum(np.abs(weight) * share * 1.0001, floor)).all()


@pytest.mark.parametrize("text", ["e4m3tz", "e5m2r7t"])
def test_floats_have_neither_zero_point_nor_fewer_bits(text: str) -> None:
    with pytest.raises(ValueError, match="zero point"):
        QSpec.parse(text)

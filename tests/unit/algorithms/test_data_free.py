"""Algorithms that round a weight from nothing but the weight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms.data_free import HqqOptions, RtnOptions, hqq, k_quant, rtn
from qcompiler.algorithms.double_quantization import with_quantized_scales
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.qtensor import QTensor, scale_vector
from qcompiler.schemes import QSpec

ALGORITHMS: list[Callable[..., QTensor]] = [rtn, k_quant, hqq]
SPECS = ("u4g64@0", "u4g64@0z", "u4r3g48@0", "u2g32@0z", "u4c@1", "s4g64@0", "nf4g64@0", "b1g64@0")


def weight(k: int = 200, n: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (k, n)).astype(np.float32)


def error(tensor: QTensor, w: np.ndarray) -> float:
    return float(np.square(tensor.dequantize() - w).mean())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("text", SPECS)
def test_elements_and_zero_points_are_those_of_the_format(
    algorithm: Callable[..., QTensor], text: str
) -> None:
    spec = QSpec.parse(text)
    tensor = algorithm(weight(), spec)
    low, high = (0, 15) if spec.codebook == "nf4" else (0, 1) if spec.codebook else (None, None)
    assert tensor.q.min() >= (spec.qmin if low is None else low)
    assert tensor.q.max() <= (spec.qmax if high is None else high)
    if tensor.zero_point is not None:
        assert tensor.zero_point.min() >= spec.qmin
        assert tensor.zero_point.max() <= spec.qmax
    assert error(tensor, weight()) < np.square(weight()).mean()


@pytest.mark.parametrize("text", ["u4g64@0", "u4r3g64@0", "u2g32@0", "u4g64@0z", "nf4g64@0"])
def test_a_search_errs_less(text: str) -> None:
    spec, w = QSpec.parse(text), weight()
    plain = error(rtn(w, spec, RtnOptions(search=False)), w)
    clipped = error(rtn(w, spec, RtnOptions(full_range=False)), w)
    full = error(rtn(w, spec), w)
    assert full <= clipped <= plain
    assert full < plain


def test_the_full_range_uses_the_lowest_number_for_the_largest_element() -> None:
    w = np.asarray([[8.0], [-7.0], [1.0], [0.0]], np.float32)
    tensor = rtn(w, QSpec.parse("u4g16@0"))
    assert np.array_equal(tensor.dequantize(), w)
    assert tensor.scale[0, 0] == -1.0
    assert (rtn(w, QSpec.parse("u4g16@0"), RtnOptions(full_range=False)).scale > 0).all()


def test_float_zero_points_leave_no_mean_error_and_less_of_it() -> None:
    w = weight(256, 5) + np.float32(0.3)
    whole, exact = (hqq(w, QSpec.parse(f"u4g64@0{zero}")) for zero in "zf")
    assert error(exact, w) < error(whole, w)
    means = np.abs((exact.dequantize() - w).reshape(4, 64, 5).mean(1))
    assert means.max() < 0.05 * np.abs(exact.scale).max()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_table_is_a_matrix_transposed(algorithm: Callable[..., QTensor]) -> None:
    w = weight(100, 9)
    one = algorithm(w, QSpec.parse("u4g48@0z"))
    other = algorithm(w.T, QSpec.parse("u4g48@1z"))
    assert np.array_equal(one.dequantize(), other.dequantize().T)


@given(k=st.integers(1, 130), group=st.integers(1, 70), zero=st.sampled_from(["", "z", "f"]))
@settings(max_examples=40, deadline=None)
def test_the_last_group_may_be_ragged(k: int, group: int, zero: str) -> None:
    """Groups do not know of each other: the ragged one is rounded as if it were alone."""
    w, spec = weight(k, 3), QSpec.parse(f"u4g{group}@0{zero}")
    whole = k // group * group
    tensor = hqq(w, spec)
    if whole < k:
        alone = hqq(w[whole:], spec)
        assert np.array_equal(tensor.dequantize()[whole:], alone.dequantize())
    assert tensor.scale.shape == (-(-k // group), 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("text", ["u4g16@0", "u4g16@0z", "nf4g16@0", "b1g16@0", "u4g16@0f"])
def test_zeros_and_extremes_stay_finite(algorithm: Callable[..., QTensor], text: str) -> None:
    w = np.zeros((64, 3), np.float32)
    w[16:32], w[32:48, 1], w[48:, 2] = 1e-41, 3e38, -5.0
    tensor = algorithm(w, QSpec.parse(text))
    assert np.isfinite(tensor.dequantize()).all()
    if "b1" not in text:
        assert not tensor.dequantize()[:16].any()
        assert np.allclose(tensor.dequantize()[48:], w[48:], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_not_finite_is_refused(algorithm: Callable[..., QTensor]) -> None:
    w = weight()
    w[3, 3] = np.nan
    with pytest.raises(QcError, match="1 of 1400") as caught:
        algorithm(w, QSpec.parse("u4g64@0"), where="w of fc")
    assert caught.value.code is Code.NOT_FINITE_WEIGHT


@pytest.mark.parametrize("scales", ["u8g256@0z", "s8g16@0", "u8r6g8@0z", "u4g32@0z"])
def test_scales_are_rounded_and_elements_after_them(scales: str) -> None:
    w = weight(300, 11)
    plain = rtn(w, QSpec.parse("u4g32@0z"))
    tensor = with_quantized_scales(plain, QSpec.parse(scales), w)
    kept = with_quantized_scales(plain, QSpec.parse(scales))
    assert tensor.stored_scale is not None
    vector = scale_vector(tensor.scale, tensor.spec)
    assert np.array_equal(tensor.stored_scale.dequantize(), vector)
    assert np.array_equal(kept.q, plain.q)
    assert error(tensor, w) <= error(kept, w)
    assert error(tensor, w) < (2.0 if scales.startswith("u4") else 1.1) * error(plain, w)


def test_the_norm_is_the_users() -> None:
    w, spec = weight(), QSpec.parse("u4g64@0z")
    small = np.abs(hqq(w, spec, HqqOptions(norm=0.7, magnitude=0.0)).dequantize() - w)
    large = np.abs(hqq(w, spec, HqqOptions(norm=4.0, magnitude=0.0)).dequantize() - w)
    assert (small**0.7).sum() < (large**0.7).sum()
    assert (small**4).sum() > (large**4).sum()

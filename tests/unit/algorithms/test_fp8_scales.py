"""Weights of few bits under restricted scales are 8-bit floats, and little is lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms.fp8_scales import ColumnFactors
from qcompiler.algorithms.gptq import GptqOptions, gptq
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.float8 import round_float8
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec

FP8 = GptqOptions(fp8_scales=True)


def problem(k: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, max(1, k // 4))) @ rng.standard_normal((max(1, k // 4), k))
    x = (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32)
    sizes = np.exp(rng.normal(0, 2, (k, 1)))  # groups of very different sizes
    return (rng.standard_normal((k, n)) * sizes).astype(np.float32), x.T @ x


def factors_of(tensor: QTensor) -> np.ndarray:
    """A factor for each column, under which its largest scale is 2^4."""
    return np.abs(tensor.scale).max(axis=0, keepdims=True) / np.float32(16)


@given(
    st.sampled_from(["u4g16@0", "u4g16@0z", "u4r3g32@0z", "u2g16@0z", "u4c@1z", "s4g16@0"]),
    st.integers(1, 70),
    st.integers(1, 9),
    st.sampled_from([FP8, dataclasses.replace(FP8, static_groups=True, act_order="full")]),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_the_integers_stand_for_is_e4m3(text, k, n, options, seed):
    w, h = problem(k, n, seed)
    tensor = gptq(w, h, QSpec.parse(text), options).tensor
    factor = factors_of(tensor)
    powers = np.log2(np.abs(tensor.scale.astype(np.float64)) / factor)
    np.testing.assert_array_equal(powers, np.rint(powers))
    floats = tensor.dequantize()
    as_fp8 = round_float8(floats / factor, ir.DataType.FLOAT8E4M3FN)
    np.testing.assert_array_equal(as_fp8 * factor, floats)


@pytest.mark.parametrize("text", ["u4g64@0", "u4g64@0z"])
def test_gptq_sees_the_restriction(text):
    """Its error lies between that under free scales and that of rounding to nearest."""
    w, h = problem(256, 64, seed=3)
    spec = QSpec.parse(text)

    def error(tensor: QTensor) -> float:
        off = tensor.dequantize() - w
        return float(np.einsum("kn,kl,ln->", off, h, off, optimize=True))

    free, bound = (error(gptq(w, h, spec, options).tensor) for options in (GptqOptions(), FP8))
    nearest = round_to_nearest(w, spec)
    assert free < bound < 2 * free
    assert bound < 0.7 * error(ColumnFactors.of(nearest).snap(w, nearest))


def test_one_group_costs_nothing():
    w, h = problem(48, 7)
    spec = QSpec.parse("u4c@1")
    free, bound = (gptq(w, h, spec, options).tensor for options in (GptqOptions(), FP8))
    np.testing.assert_allclose(bound.dequantize(), free.dequantize(), rtol=1e-5)


@pytest.mark.parametrize("text", ["u8g16@0", "nf4g16@0", "u4g16@0/u8g256@0z"])
def test_what_cannot_become_e4m3_is_refused(text):
    w, h = problem(32, 4)
    with pytest.raises(QcError, match="4 bits") as found:
        gptq(w, h, QSpec.parse(text), FP8, where="fc1")
    assert found.value.code is Code.USAGE

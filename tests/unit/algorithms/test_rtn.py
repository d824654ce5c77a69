"""Round to nearest, in every granularity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms.rtn import CLIP_RATIOS, round_to_nearest
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.affine import dequantize, quantize, range_to_params
from qcompiler.numerics.error import mse
from qcompiler.numerics.qtensor import expand_groups
from qcompiler.schemes import QSpec

SPECS = [
    *("s8t", "u8tz", "s8c@0", "s8c@1", "s8c@-1", "u8c@1z", "s8r7c@1", "s16t"),
    *("u4g32@0", "u4g16@1z", "s4g32@0", "s8g64@-1", "u2g16@0z"),
]


def weight(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * rng.uniform(0.01, 5, shape[-1])).astype(np.float32)


@pytest.mark.parametrize("shape", [(70, 33), (1, 5), (33, 1), (16, 16), (700, 300)])
@pytest.mark.parametrize("text", SPECS)
def test_every_element_is_within_half_a_step(text: str, shape: tuple[int, ...]) -> None:
    spec, w = QSpec.parse(text), weight(shape)
    quantized = round_to_nearest(w, spec)
    steps = expand_groups(quantized.scale, w.shape, spec)
    assert quantized.q.dtype.itemsize == max(1, spec.dtype.bitwidth // 8)
    assert quantized.q.min() >= spec.qmin
    assert quantized.q.max() <= spec.qmax
    # asymmetric ranges may lose another half step to the rounding of the zero point
    slack = 0.5 if spec.symmetric else 1.0
    assert (np.abs(quantized.dequantize() - w) <= (slack + 1e-3) * steps).all()


@pytest.mark.parametrize("text", ["s8c@1", "s8c@0", "u8tz"])
def test_pieces_give_what_the_whole_gives(text: str) -> None:
    spec, w = QSpec.parse(text), weight((700, 300))
    quantized = round_to_nearest(w, spec)
    axes = None if spec.axis is None else tuple(a for a in range(2) if a != spec.axis)
    lo, hi = w.min(axis=axes, keepdims=True), w.max(axis=axes, keepdims=True)
    scale, zero_point = range_to_params(lo, hi, spec)
    assert np.array_equal(quantized.q, quantize(w, scale, zero_point, spec.qmin, spec.qmax))
    assert np.array_equal(quantized.dequantize(), dequantize(quantized.q, scale, zero_point))


@pytest.mark.parametrize("text", ["u4g32@0", "u4g32@0z", "u4g32@1", "u2g16@0", "s8t", "s4c@1"])
def test_the_clip_search_never_loses(text: str) -> None:
    spec, w = QSpec.parse(text), weight((300, 65))
    plain = mse(w, round_to_nearest(w, spec).dequantize())
    searched = mse(w, round_to_nearest(w, spec, clip_ratios=CLIP_RATIOS).dequantize())
    assert searched <= plain * (1 + 1e-6)


def test_the_clip_search_finds_the_best_ratio_of_each_tile() -> None:
    spec, w = QSpec.parse("u4g32@0"), weight((70, 9))
    searched = round_to_nearest(w, spec, clip_ratios=CLIP_RATIOS).dequantize()
    starts = np.arange(0, 70, 32)
    each = [
        np.add.reduceat(
            (round_to_nearest(w, spec, clip_ratios=(ratio,)).dequantize() - w) ** 2, starts, axis=0
        )
        for ratio in CLIP_RATIOS
    ]
    found = np.add.reduceat((searched - w) ** 2, starts, axis=0)
    assert np.allclose(found, np.min(each, axis=0), rtol=1e-3, atol=0)


def test_a_dead_channel_gets_a_usable_scale() -> None:
    w = weight((8, 3))
    w[:, 1] = 0.0
    quantized = round_to_nearest(w, QSpec.parse("s8c@1"))
    assert not quantized.q[:, 1].any()
    assert quantized.scale[0, 1] == quantized.scale.max()
    assert round_to_nearest(np.zeros((4, 2), np.float32), QSpec.parse("s8c@1")).scale.tolist() == [
        [1.0, 1.0]
    ]


def test_a_floor_raises_only_the_scales_below_it() -> None:
    w = weight((8, 3))
    plain = round_to_nearest(w, QSpec.parse("s8c@1")).scale
    floor = np.array([[plain[0, 0] * 2, 0.0, 0.0]], np.float32)
    raised = round_to_nearest(w, QSpec.parse("s8c@1"), smallest_scale=floor)
    assert raised.scale.tolist() == [[floor[0, 0], plain[0, 1], plain[0, 2]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    w = weight((8, 3))
    w[2, 1] = bad
    with pytest.raises(QcError, match="1 of 24 elements") as caught:
        round_to_nearest(w, QSpec.parse("s8c@1"), where="w of layer")
    assert caught.value.code is Code.NOT_FINITE_WEIGHT
    assert caught.value.diagnostic.where == "w of layer"


def test_half_precision_is_computed_in_single() -> None:
    w = weight((40, 5)).astype(np.float16)
    assert np.array_equal(
        round_to_nearest(w, QSpec.parse("s8c@1")).q,
        round_to_nearest(w.astype(np.float32), QSpec.parse("s8c@1")).q,
    )


def test_empty_and_scalar_weights() -> None:
    assert round_to_nearest(np.zeros((0, 4), np.float32), QSpec.parse("s8c@1")).q.shape == (0, 4)
    scalar = round_to_nearest(np.float32(-2.0), QSpec.parse("s8t"))
    assert float(scalar.dequantize()) == -2.0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([text for text in SPECS if "r7" not in text]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(0, 10**6),
)
def test_quantizing_is_idempotent(text: str, rows: int, columns: int, seed: int) -> None:
    spec = QSpec.parse(text)
    once = round_to_nearest(weight((rows, columns), seed), spec).dequantize()
    twice = round_to_nearest(once, spec).dequantize()
    # scales are taken from the extrema again, which are multiples of the first ones
    steps = expand_groups(round_to_nearest(once, spec).scale, once.shape, spec)
    assert (np.abs(once - twice) <= (0.51 if spec.symmetric else 1.01) * steps).all()


def test_groups_of_an_empty_weight_dequantize() -> None:
    empty = round_to_nearest(np.zeros((64, 0), np.float32), QSpec.parse("u4g16@0"))
    assert empty.dequantize().shape == (64, 0)

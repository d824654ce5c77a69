"""GPTQ against a textbook, and what it must hold whatever the data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms.gptq import GptqOptions, gptq, root_of_inverse
from qcompiler.algorithms.group_search import GroupSearch, search_groups
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec

PLAIN = GptqOptions(act_order="none", search=False)


def problem(k: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight, correlated rows and their second moment."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, max(1, k // 4))) @ rng.standard_normal((max(1, k // 4), k))
    x = (x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32)
    return rng.standard_normal((k, n)).astype(np.float32), x, x.T @ x


def parameters(rows: np.ndarray, spec: QSpec) -> QTensor:
    return search_groups(rows, spec, GroupSearch())


def textbook(w: np.ndarray, h: np.ndarray, spec: QSpec, damp: float = 0.01) -> np.ndarray:
    """The algorithm of the paper without blocks, in float64; what the integers stand for."""
    w, h = w.astype(np.float64).copy(), h.astype(np.float64).copy()
    size = spec.group_size or len(w)
    h[np.diag_indices_from(h)] += damp * np.diagonal(h).mean()
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    found = np.zeros_like(w)
    for k in range(len(w)):
        if k % size == 0:
            part = parameters(w[k : k + size].astype(np.float32), spec)
            zero = 0 if part.zero_point is None else part.zero_point[0]
        q = np.clip(np.rint(w[k] / part.scale[0]), spec.qmin - zero, spec.qmax - zero)
        found[k] = q * part.scale[0]
        w[k + 1 :] -= np.outer(upper[k, k + 1 :], (w[k] - found[k]) / upper[k, k])
    return found


def loss(tensor: QTensor | np.ndarray, w: np.ndarray, h: np.ndarray) -> float:
    d = (tensor.dequantize() if isinstance(tensor, QTensor) else tensor) - w
    return float(np.sum(d * (h.astype(np.float64) @ d)))


@pytest.mark.parametrize("block_size", [1, 8, 1000])
@pytest.mark.parametrize("text", ["u4g16@0", "u4g16@0z", "s8c@1", "u2g32@0z"])
def test_equals_the_textbook(text: str, block_size: int) -> None:
    w, _, h = problem(64, 12)
    spec = QSpec.parse(text)
    found = gptq(w, h, spec, dataclasses.replace(PLAIN, block_size=block_size)).tensor
    wanted = textbook(w, h, spec)
    # an element on the edge between two integers may fall to either side, and rows behind follow
    assert np.mean(np.isclose(found.dequantize(), wanted, atol=1e-4)) > 0.99
    assert loss(found, w, h) == pytest.approx(loss(wanted, w, h), rel=0.02)


@given(
    k=st.integers(1, 70),
    n=st.integers(1, 9),
    text=st.sampled_from(
        ["u4g16@0", "u4g16@0z", "s4c@1", "u4r3g7@0z", "e4m3c@1", "nf4g16@0", "u4g8@0z/u8g4@0z"]
    ),
    order=st.sampled_from(["none", "group", "full"]),
    static=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_every_form_comes_back_as_the_spec_says(
    k: int, n: int, text: str, order: str, static: bool
) -> None:
    w, _, h = problem(k, n, seed=k)
    spec = QSpec.parse(text)
    options = GptqOptions(act_order=order, static_groups=static or order == "full")  # type: ignore[arg-type]
    found = gptq(w, h, spec, options).tensor
    assert found.q.shape == w.shape
    lowest, highest = (0, 15) if spec.codebook else (spec.qmin, spec.qmax)
    assert np.float32(found.q).min() >= lowest
    assert np.float32(found.q).max() <= highest
    assert found.scale.shape == (-(-k // (spec.group_size or k)), n)
    assert (found.stored_scale is None) == (spec.scales is None)
    assert np.isfinite(found.dequantize()).all()


@pytest.mark.parametrize("order", ["none", "group", "full"])
@pytest.mark.parametrize("text", ["u4g16@0", "u2g32@0z", "s4c@1"])
def test_beats_rounding_to_nearest(text: str, order: str) -> None:
    w, _, h = problem(96, 20)
    spec = QSpec.parse(text)
    options = GptqOptions(act_order=order, static_groups=order == "full")  # type: ignore[arg-type]
    found = gptq(w, h, spec, options)
    assert loss(found.tensor, w, h) < 0.7 * loss(round_to_nearest(w, spec), w, h)
    damped = h + 0.01 * np.diagonal(h).mean() * np.eye(len(h), dtype=np.float32)
    assert found.loss == pytest.approx(loss(found.tensor, w, damped), rel=0.01)


def test_dead_channels_are_rounded_to_nearest() -> None:
    w, x, _ = problem(32, 6)
    x[:, [3, 17]] = 0.0
    spec = QSpec.parse("s4c@1")
    found = gptq(w, x.T @ x, spec, PLAIN)
    nearest = parameters(w, spec)
    assert found.dead == 2
    np.testing.assert_array_equal(found.tensor.q[[3, 17]], nearest.q[[3, 17]])


def test_a_dead_layer_is_rounded_to_nearest() -> None:
    w, _, h = problem(32, 6)
    spec = QSpec.parse("u4g16@0z")
    found = gptq(w, np.zeros_like(h), spec, PLAIN)
    np.testing.assert_array_equal(found.tensor.q, parameters(w, spec).q)
    assert (found.dead, found.loss) == (32, 0.0)


def test_damping_is_raised_until_the_matrix_factors() -> None:
    w, _, _ = problem(16, 4)
    h = np.ones((16, 16), np.float32) - 0.5 * np.eye(16, dtype=np.float32)  # eigenvalues -0.5
    found = gptq(w, h, QSpec.parse("s4c@1"), PLAIN)
    assert found.damp > 1.0
    assert np.isfinite(found.tensor.dequantize()).all()


def test_the_root_is_that_of_the_inverse() -> None:
    _, _, h = problem(150, 1)
    rows = np.random.default_rng(0).permutation(150)
    root, damp = root_of_inverse(h, rows, 0.01)
    damped = h[np.ix_(rows, rows)] + damp * np.diagonal(h).mean() * np.eye(150)
    np.testing.assert_allclose(root.T @ root @ damped, np.eye(150), atol=2e-3)
    np.testing.assert_array_equal(root, np.triu(root))


def test_what_cannot_be_done_is_refused() -> None:
    w, _, h = problem(32, 4)
    spec = QSpec.parse("u4g16@0")
    with pytest.raises(QcError) as found:
        gptq(w, h, spec, GptqOptions(act_order="full"))
    assert found.value.code is Code.USAGE
    with pytest.raises(QcError) as found:
        gptq(w, h * np.float32("nan"), spec, where="layer")
    assert found.value.code is Code.NOT_FINITE
    with pytest.raises(QcError) as found:
        gptq(w * np.float32("inf"), h, spec, where="layer")
    assert found.value.code is Code.NOT_FINITE_WEIGHT

"""AWQ: factors and clipped ranges by the error of the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.algorithms.awq import AwqOptions, clipped, diagonal_blocks, find_scales
from qcompiler.algorithms.group_search import GroupSearch, search_groups
from qcompiler.schemes import QSpec


def problem(k: int = 96, n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and rows with a few large channels."""
    rng = np.random.default_rng(seed)
    scale = np.ones(k)
    scale[:: k // 6] = 30.0
    x = rng.standard_normal((500, k)) * scale
    return rng.standard_normal((k, n)).astype(np.float32), x.astype(np.float32)


def loss(floats: np.ndarray, w: np.ndarray, x: np.ndarray) -> float:
    return float(np.square(x @ (floats - w), dtype=np.float64).sum())


@pytest.mark.parametrize("duo", [True, False])
@pytest.mark.parametrize("text", ["u4g32@0", "u4g32@0z", "u4r3g32@0z", "s4c@1"])
def test_salient_channels_are_scaled_up_and_the_outputs_gain(text: str, duo: bool) -> None:
    w, x = problem()
    spec = QSpec.parse(text)
    found = find_scales([w], np.abs(x).mean(0), x.T @ x, spec, AwqOptions(duo_scaling=duo))
    assert found.ratio is not None
    large = np.zeros(len(w), bool)
    large[:: len(w) // 6] = True
    assert found.factors[large].min() > found.factors[~large].max()
    s = found.factors.astype(np.float32)[:, None]
    scaled = search_groups(w * s, spec, GroupSearch()).dequantize() / s
    plain = search_groups(w, spec, GroupSearch()).dequantize()
    assert loss(scaled, w, x) == pytest.approx(found.loss, rel=1e-3)
    assert loss(plain, w, x) == pytest.approx(found.loss_without, rel=1e-3)
    assert found.loss < 0.6 * found.loss_without


def test_layers_of_one_activation_share_factors_and_ties_hold() -> None:
    w, x = problem()
    ties = np.arange(len(w)) // 4
    found = find_scales(
        [w, 2 * w[:, :7]], np.abs(x).mean(0), x.T @ x, QSpec.parse("u4g32@0"), ties=ties
    )
    by_tie = found.factors.reshape(-1, 4)
    np.testing.assert_array_equal(by_tie, np.repeat(by_tie[:, :1], 4, axis=1))


def test_even_channels_are_left_alone() -> None:
    w, _ = problem()
    found = find_scales(
        [w], np.ones(len(w)), np.eye(len(w), dtype=np.float32), QSpec.parse("u4g32@0")
    )
    assert found.loss > 0.9 * found.loss_without


@pytest.mark.parametrize("k", [96, 100, 20])
@pytest.mark.parametrize("text", ["u4g32@0", "u2g32@0z", "s4c@1", "nf4g32@0"])
def test_clipping_lowers_the_error_of_each_group(text: str, k: int) -> None:
    w, x = problem(k)
    spec = QSpec.parse(text)
    blocks = diagonal_blocks(x.T @ x, spec)
    found = clipped(w, blocks, spec)
    plain = search_groups(w, spec, GroupSearch())
    assert found.scale.shape == plain.scale.shape
    size = spec.group_size or k
    for start in range(0, k, size):
        own = slice(start, start + size)
        for column in range(w.shape[1]):
            pair = [
                loss(t.dequantize()[own, column], w[own, column], x[:, own]) for t in (found, plain)
            ]
            assert pair[0] <= pair[1] * (1 + 1e-4)
    assert loss(found.dequantize(), w, x) < loss(plain.dequantize(), w, x)

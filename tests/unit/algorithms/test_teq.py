"""TEQ: learned factors for input channels."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.algorithms.teq import TeqGroup, TeqOptions, TeqResult, teq
from qcompiler.lift import lift
from qcompiler.schemes import QSpec
from two_products import IN, block


def learn(options: TeqOptions, ties: np.ndarray | None = None) -> TeqResult:
    rng = np.random.default_rng(0)
    graph, weights = block(rng)
    lifted = lift(graph)
    sizes = np.where(np.arange(IN) % 6, 0.1, 10.0)  # some channels are large
    inputs = [
        (torch.from_numpy((rng.normal(0, 1, (16, IN)) * sizes).astype(np.float32)),)
        for _ in range(8)
    ]
    with torch.no_grad():
        targets = [lifted(*sample) for sample in inputs]
    specs = dict.fromkeys(weights, QSpec.parse("u2g8@0z"))
    groups = [TeqGroup((weights[0],), ties)]
    return teq(lifted, groups, specs, inputs, targets, options=options)


def test_channels_with_large_activations_get_larger_factors() -> None:
    result = learn(TeqOptions(iters=100, lr=5e-2))
    assert result.loss_after < 0.8 * result.loss_before
    large = np.arange(IN) % 6 == 0
    assert np.median(result.factors[0][large]) > np.median(result.factors[0][~large])


def test_tied_channels_share_a_factor() -> None:
    ties = np.arange(IN) // 2
    factors = learn(TeqOptions(iters=30, lr=5e-2), ties).factors[0]
    np.testing.assert_array_equal(factors[::2], factors[1::2])
    assert len(set(factors)) > 1


def test_no_steps_leave_everything() -> None:
    result = learn(TeqOptions(iters=0))
    assert result.loss_after == result.loss_before
    np.testing.assert_array_equal(result.factors[0], 1.0)

"""AutoRound: learned rounding and ranges of a block's weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from qcompiler.algorithms.autoround import (
    AutoRoundOptions,
    AutoRoundResult,
    autoround,
)
from qcompiler.algorithms.rounded_weight import RoundedWeight
from qcompiler.lift import lift
from qcompiler.schemes import QSpec
from two_products import IN, block


def learn(spec: str, options: AutoRoundOptions) -> tuple[AutoRoundResult, list[ir.Value]]:
    rng = np.random.default_rng(0)
    graph, weights = block(rng)
    lifted = lift(graph)
    mix = rng.normal(0, 1, (IN // 4, IN))  # correlated features, as activations are
    inputs = [
        (torch.from_numpy((rng.normal(0, 1, (16, IN // 4)) @ mix).astype(np.float32)),)
        for _ in range(8)
    ]
    with torch.no_grad():
        targets = [lifted(*sample) for sample in inputs]
    specs = dict.fromkeys(weights, QSpec.parse(spec))
    return autoround(lifted, specs, inputs, targets, options=options), weights


@pytest.mark.parametrize("spec", ["u4g8@0", "u4g8@0z", "s4c@1", "u2g16@0z", "u8r3g8@0z"])
def test_learning_lowers_the_error_of_the_block(spec: str) -> None:
    result, weights = learn(spec, AutoRoundOptions(iters=60, batch_size=4))
    assert result.loss_after < 0.9 * result.loss_before
    for value in weights:
        tensor = result.tensors[value]
        assert tensor.spec == QSpec.parse(spec)
        assert tensor.q.min() >= tensor.spec.qmin
        assert tensor.q.max() <= tensor.spec.qmax


def test_no_steps_is_rounding_to_nearest() -> None:
    result, _ = learn("u4g8@0", AutoRoundOptions(iters=0))
    assert result.steps == 0
    assert result.loss_after == result.loss_before


def test_it_stops_when_nothing_gets_better() -> None:
    result, _ = learn("u4g8@0", AutoRoundOptions(iters=200, dynamic_max_gap=3, lr=0.0))
    assert result.steps <= 8  # batches differ, so that the first need not be the best


def test_ranges_stay_where_they_are_not_learned() -> None:
    options = AutoRoundOptions(iters=10, enable_minmax_tuning=False)
    result, weights = learn("u4g8@0z", options)
    plain, _ = learn("u4g8@0z", AutoRoundOptions(iters=0))
    for mine, other in zip(weights, plain.tensors, strict=True):
        np.testing.assert_array_equal(result.tensors[mine].scale, plain.tensors[other].scale)


@given(
    rows=st.integers(1, 21),
    columns=st.integers(1, 5),
    spec=st.sampled_from(["u4g8@0", "u4g5@0z", "s4c@1", "s8g7@0", "u2g4@1z", "u4g3@1"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_module_computes_what_its_integers_say(
    rows: int, columns: int, spec: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    module = RoundedWeight(weight, QSpec.parse(spec))
    with torch.no_grad():
        module.shift.uniform_(-0.5, 0.5, generator=generator)
        module.low.uniform_(0.5, 1, generator=generator)
        module.refresh()
        seen = module(weight).numpy()
    np.testing.assert_allclose(module.to_qtensor().dequantize(), seen, rtol=1e-6, atol=1e-6)


def test_steps_are_those_of_the_package() -> None:
    assert AutoRoundOptions().steps_of(4) == (1 / 200, 1 / 200)
    assert AutoRoundOptions(iters=1000).steps_of(2) == (2 / 1000, 2 / 1000)
    assert AutoRoundOptions(lr=0.1, minmax_lr=0.2).steps_of(4) == (0.1, 0.2)


def test_padding_does_not_count() -> None:
    rng = np.random.default_rng(0)
    graph, weights = block(rng)
    lifted = lift(graph)
    inputs = [(torch.from_numpy(rng.normal(0, 1, (2, 4, IN)).astype(np.float32)),)]
    with torch.no_grad():
        targets = [tuple(out.clone() for out in lifted(*inputs[0]))]
    targets[0][0][:, 2:] = 1e6
    keep = [torch.tensor([[True, True, False, False]] * 2)]
    specs = dict.fromkeys(weights, QSpec.parse("s8c@1"))
    options = AutoRoundOptions(iters=2)
    assert autoround(lifted, specs, inputs, targets, keep=keep, options=options).loss_before < 1

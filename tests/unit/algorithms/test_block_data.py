"""A block's samples: which run together, and what their errors are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from qcompiler.algorithms.block_data import BlockData
from qcompiler.lift import Lifted, lift

WIDTH = 6


def block(*, over_batch: bool = False) -> Lifted:
    """``x W + bias``, for ``x`` ``[batch, rows, WIDTH]``; the bias has no batch.

    With ``over_batch`` the mean over the batch is taken off, so that samples see one another.
    """
    x = ir.Value(name="x")
    bias = ir.Value(name="bias")
    array = np.random.default_rng(0).normal(0, 1, (WIDTH, WIDTH)).astype(np.float32)
    weight = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    product = ir.node("MatMul", [x, weight])
    total = ir.node("Add", [product.outputs[0], bias])
    nodes = [product, total]
    if over_batch:
        axes = ir.Value(name="axes", const_value=ir.tensor([0], name="axes"))
        mean = ir.node("ReduceMean", [total.outputs[0], axes])
        nodes += [mean, ir.node("Sub", [total.outputs[0], mean.outputs[0]])]
    initializers = [weight, *((axes,) if over_batch else ())]
    graph = ir.Graph(
        [x, bias],
        [nodes[-1].outputs[0]],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": 18},
    )
    return lift(graph)


def samples(lengths: list[int]) -> tuple[list[tuple], list[tuple]]:
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(WIDTH, generator=generator)
    inputs = [(torch.randn(1, n, WIDTH, generator=generator), bias) for n in lengths]
    targets = [(torch.randn(1, n, WIDTH, generator=generator),) for n in lengths]
    return inputs, targets


def alone(lifted: Lifted, inputs: list[tuple], targets: list[tuple]) -> list[float]:
    return [
        float((lifted(*given)[0] - wanted[0]).square().sum())
        for given, wanted in zip(inputs, targets, strict=True)
    ]


@pytest.mark.parametrize("over_batch", [False, True])
def test_errors_are_those_of_each_sample_alone(over_batch: bool) -> None:
    inputs, targets = samples([3, 3, 5, 3, 5])
    lifted = block(over_batch=over_batch)
    wanted = alone(lifted, inputs, targets)
    data = BlockData(lifted, inputs, targets)
    calls = []
    lifted.module.register_forward_hook(lambda *_: calls.append(1))
    found = data.errors([4, 0, 1, 0, 2])
    np.testing.assert_allclose(found.sums.tolist(), [wanted[i] for i in (4, 0, 1, 0, 2)], rtol=1e-5)
    assert found.counts == tuple(WIDTH * n for n in (5, 3, 3, 3, 5))
    assert len(calls) == (4 if over_batch else 2)  # two lengths; one sample was named twice


def test_padding_is_left_out_of_samples_that_run_together() -> None:
    inputs, targets = samples([4, 4])
    keep = [torch.tensor([[True, True, False, False]]), torch.tensor([[True, True, True, False]])]
    targets[0][0][:, 2:] = float("nan")
    targets[1][0][:, 3:] = float("nan")
    found = BlockData(block(), inputs, targets, keep).errors([0, 1])
    assert found.counts == (2 * WIDTH, 3 * WIDTH)
    assert torch.isfinite(found.sums).all()


def test_bfloat16_is_not_taken_where_it_would_hide_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompiler.algorithms.block_data.computes_bfloat16", lambda device: True)
    inputs, targets = samples([8, 8])
    assert BlockData(block(), inputs, targets).allow_half_precision()
    lifted = block()
    near = [(lifted(*given)[0] + 1e-4,) for given in inputs]
    data = BlockData(lifted, inputs, near)
    assert not data.allow_half_precision()
    assert not data.half_precision

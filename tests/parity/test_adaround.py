"""AdaRound beats rounding to nearest where it can, keeps its laws, and never does harm."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # layers are tiny

from qcompiler.algorithms.adaround import AdaRoundOptions, adaround
from qcompiler.algorithms.layer_samples import crop_conv, layer_function, take_rows
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.lift import LearnedRounding, lift
from qcompiler.schemes import QSpec

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
QUICK = AdaRoundOptions(iterations=300)


def correlated(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Activations of few directions, as networks have them: there rounding errors can cancel."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((width // 4, width))
    noise = 0.05 * rng.standard_normal((rows, width))
    return (rng.standard_normal((rows, width // 4)) @ basis + noise).astype(np.float32)


@pytest.mark.parametrize("text", ["s4c@1", "s8t", "u4g8@0z"])
def test_a_matrix_product_loses_less_than_by_rounding_to_nearest(text: str) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((32, 16)).astype(np.float32)
    x = correlated(2048, 32)
    start = round_to_nearest(weight, QSpec.parse(text))
    xs, ys = take_rows(x, x @ weight, count=2048, rng=rng, per_sample=8)
    result = adaround(torch.matmul, weight, start, xs, ys, options=QUICK, channel_axis=2)
    assert result.improved
    assert result.mse_after < 0.6 * result.mse_before
    fresh = correlated(512, 32)  # the same directions, other rows
    errors = [
        np.square(fresh @ (tensor.dequantize() - weight)).mean()
        for tensor in (start, result.tensor)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_integers_are_neighbours_of_the_float_weight_under_the_same_scales() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((16, 8)).astype(np.float32)
    x = correlated(512, 16)
    start = round_to_nearest(weight, QSpec.parse("s4c@1"))
    result = adaround(
        torch.matmul, weight, start, x[:, None], (x @ weight)[:, None],
        options=QUICK, channel_axis=2,
    )  # fmt: skip
    assert result.tensor.scale.tobytes() == start.scale.tobytes()
    assert result.tensor.q.dtype == start.q.dtype
    assert np.abs(result.tensor.q - weight / start.scale).max() < 1
    assert result.tensor.q.min() >= start.spec.qmin
    assert result.tensor.q.max() <= start.spec.qmax
    assert result.flipped == (result.tensor.q != start.q).sum() > 0


def test_a_tiny_layer_finds_nearly_the_best_of_all_roundings() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((8, 1)).astype(np.float32)
    x = correlated(256, 8)
    y = x @ weight
    start = round_to_nearest(weight, QSpec.parse("s4t"))
    floor = np.floor(weight / start.scale)
    errors = {
        np.square(x @ ((floor + np.array(up)[:, None]) * start.scale) - y).mean()
        for up in itertools.product((0, 1), repeat=8)
    }
    result = adaround(
        torch.matmul, weight, start, x[:, None], y[:, None],
        options=AdaRoundOptions(iterations=600), channel_axis=2,
    )  # fmt: skip
    reached = np.square(x @ result.tensor.dequantize() - y).mean()
    assert reached <= 3 * min(errors)
    assert sum(error < reached for error in errors) <= 4  # of 256


def test_learning_that_does_not_help_returns_what_was_given() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((8, 4)).astype(np.float32)
    x = rng.standard_normal((64, 1, 8)).astype(np.float32)
    start = round_to_nearest(weight, QSpec.parse("s8t"))
    targets = x @ start.dequantize()  # nothing can be better
    result = adaround(torch.matmul, weight, start, x, targets, options=QUICK, channel_axis=2)
    assert not result.improved
    assert result.tensor is start
    assert result.mse_after == result.mse_before


def test_the_soft_weight_starts_as_the_float_weight_and_ends_on_the_grid() -> None:
    weight = torch.linspace(-1, 1, 24).reshape(6, 4)
    start = round_to_nearest(weight.numpy(), QSpec.parse("s4c@0"))
    rounding = LearnedRounding(weight, start)
    inside = (weight / torch.from_numpy(start.scale)).abs() <= start.spec.qmax
    torch.testing.assert_close(rounding(weight)[inside], weight[inside], rtol=1e-4, atol=1e-5)
    rounding.hard = True
    hard = rounding.to_qtensor(weight).dequantize()
    np.testing.assert_allclose(rounding(weight).detach().numpy(), hard, rtol=1e-6, atol=0)
    assert float(rounding.indecision(2.0)) == 0


CONVS = [
    ("strides = [2,2], pads = [1,1,1,1]", (8, 4, 3, 3)),
    ("group = 4, pads = [2,2,2,2]", (4, 1, 5, 5)),
    ('auto_pad = "SAME_UPPER", strides = [2,2]', (8, 4, 3, 3)),
    ("dilations = [2,2], pads = [0,1,2,3]", (8, 4, 3, 3)),
]


@pytest.mark.parametrize(("attributes", "shape"), CONVS)
def test_crops_give_the_outputs_of_the_whole_picture(
    attributes: str, shape: tuple[int, ...]
) -> None:
    model = ir.from_onnx_text(
        f"""{HEAD} g (float[n,4,20,20] x) => (float[n,m,h,w] y)
        <float[1] w = {{0}}, float[{shape[0]}] b = {{{", ".join(["0.5"] * shape[0])}}},
         float lo = {{0}}, float hi = {{6}}>
        {{ c = Conv<{attributes}>(x, w, b)  y = Clip(c, lo, hi) }}"""
    )
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    nodes = list(model.graph)
    x = rng.standard_normal((3, 4, 20, 20)).astype(np.float32)
    with torch.no_grad():
        (y,) = lift(model.graph)(torch.from_numpy(x))
        xs, ys = crop_conv(nodes[0], x, y.numpy(), kernel=shape[2:], per_image=5, rng=rng)
        assert len(xs) == 15
        layer = layer_function(nodes, model.graph.inputs[0], model.graph.initializers["w"])
        found = layer(torch.from_numpy(xs), torch.from_numpy(weight))
    np.testing.assert_allclose(found.numpy(), ys, rtol=1e-4, atol=1e-5)


def test_a_convolution_with_its_clip_loses_less_than_by_rounding_to_nearest() -> None:
    model = ir.from_onnx_text(
        f"""{HEAD} g (float[n,8,12,12] x) => (float[n,m,h,w] y)
        <float[1] w = {{0}}, float lo = {{0}}, float hi = {{6}}>
        {{ c = Conv<pads = [1,1,1,1]>(x, w)  y = Clip(c, lo, hi) }}"""
    )
    rng = np.random.default_rng(5)
    weight = (0.3 * rng.standard_normal((6, 8, 3, 3))).astype(np.float32)
    value = model.graph.initializers["w"]
    value.const_value = ir.tensor(weight, name="w")
    x = np.maximum(correlated(16 * 144, 8), 0).reshape(16, 12, 12, 8).transpose(0, 3, 1, 2)
    with torch.no_grad():
        (y,) = lift(model.graph)(torch.from_numpy(x.copy()))
    nodes = list(model.graph)
    xs, ys = crop_conv(nodes[0], x, y.numpy(), kernel=(3, 3), per_image=8, rng=rng)
    layer = layer_function(nodes, model.graph.inputs[0], value)
    start = round_to_nearest(weight, QSpec.parse("s4t"))
    result = adaround(layer, weight, start, xs, ys, options=QUICK)
    assert result.mse_after < 0.6 * result.mse_before

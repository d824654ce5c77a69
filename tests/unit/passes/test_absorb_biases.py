"""High-bias absorption: the same function with smaller activations, and reasons where it is not."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from by_hand import open_text
from qcompiler.calibration.extremes import channel_extremes, channel_spreads
from qcompiler.calibration.feeds import open_feeds
from qcompiler.diagnostics import Code
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.schema import Form
from qcompiler_passes.prepare.absorb_biases import AbsorbBiases
from rewriting import both, parse, state

CONVS = """g (float[n,2,4,4] x) => (float[n,o,h,w] y) {{ c = Conv(x, w1{b1}) {between}
           y = Conv<{how}>(a, w2{b2}) }}"""
CHAIN = """g (float[n,2,4,4] x) => (float[n,o,h,w] y) { c = Conv(x, w1, b1) a = Relu(c)
           d = Conv<group = 3>(a, v, bv) e = Relu(d) y = Conv(e, w2, b2) }"""
LINEARS = """g (float[n,2] x) => (float[n,o] y) {{ m = MatMul(x, u1) c = Add(m, b1) a = Relu(c)
             {rest} }}"""
HIGH = np.array([0.5, 8.0, 30.0], np.float32)
Feeds = list[dict[str, np.ndarray]]


def with_weights(text: str, seed: int = 0, **more: np.ndarray) -> ir.Model:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (3, 2, 1, 1), "v": (3, 1, 1, 1), "w2": (4, 3, 1, 1), "w5": (4, 3, 3, 3)}
    shapes |= {"u1": (2, 3), "u2": (3, 4), "b2": (4,)}
    arrays = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
    arrays |= {"b1": HIGH, "bv": HIGH * 5, **more}
    used = {name: np.float32(x) for name, x in arrays.items() if re.search(rf"\b{name}\b", text)}
    return open_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}', used)


def feeds_of(model: ir.Model, seed: int = 0) -> Feeds:
    rank = len(model.graph.inputs[0].shape or ())
    rng = np.random.default_rng(seed)
    shape = (5, 2) if rank == 2 else (5, 2, 4, 4)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(3)]


def ready(model: ir.Model, data: Feeds, how: object = True) -> State:
    found = state()
    found.target, found.form = GENERIC_QDQ, Form.QDQ
    found.recipe = Recipe.of({"base": "static-int8", "absorb_biases": how, "force": True})
    found.feeds = open_feeds(data, input_specs(model))
    found.sample = found.feeds.first
    return found


def absorbed(model: ir.Model, data: Feeds, how: object = True) -> tuple[ir.Model, State]:
    found, result = ready(model, data, how), model.clone()
    run_pipeline([AbsorbBiases()], result, found, check=True)
    return result, found


def conv(between: str = "a = Relu(c)", how: str = "pads = [0,0,0,0]", b1: str = ", b1",
         b2: str = ", b2") -> str:  # fmt: skip
    return CONVS.format(between=between, how=how, b1=b1, b2=b2)


EXACT = [
    conv(),
    conv(b2=""),
    conv("p = MaxPool<kernel_shape = [2,2]>(c) a = Relu(p)"),
    conv("a = LeakyRelu(c)"),
    CHAIN,
    LINEARS.format(rest="n = MatMul(a, u2) y = Add(n, b2)"),
]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(EXACT), st.integers(0, 1000))
def test_the_calibration_data_give_the_same_and_channels_shrink(text: str, seed: int) -> None:
    model = with_weights(text, seed)
    data = feeds_of(model, seed)
    changed, found = absorbed(model, data)
    before, after = open_session(model), open_session(changed)
    for feed in data:
        want = run(before, feed)["y"]
        np.testing.assert_allclose(
            run(after, feed)["y"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max()
        )
    said = [item for item in found.diagnostics if item.code is Code.BIAS_ABSORBED]
    assert said
    assert all(item.values["after"] < item.values["before"] for item in said)
    axes = {"a": -1 if "MatMul" in text else 1}
    (was, now) = (channel_extremes(m, axes, data)["a"][1] for m in (model, changed))
    assert now[2] < 0.5 * was[2]  # of the channel with the high bias
    assert (now <= was + 1e-5).all()


def test_other_data_a_fifth_lower_give_the_same_too() -> None:
    model = with_weights(conv(), w1=np.zeros((3, 2, 1, 1)) + 0.25)
    data = [{"x": np.full((1, 2, 4, 4), size, np.float32)} for size in (1.0, 2.0)]
    changed, _ = absorbed(model, data)
    lower = {"x": np.full((1, 2, 4, 4), 0.9, np.float32)}
    np.testing.assert_allclose(
        run(open_session(changed), lower)["y"], run(open_session(model), lower)["y"], rtol=1e-5
    )


def test_channels_near_a_cap_keep_their_biases() -> None:
    text = conv("a = Clip(c, lo, hi)")
    bounds = {"lo": np.zeros(()), "hi": np.array(20.0)}
    model = with_weights(text, **bounds)
    data = feeds_of(model)
    changed, found = absorbed(model, data)
    (said,) = (item for item in found.diagnostics if item.code is Code.BIAS_ABSORBED)
    assert said.values["moved"] == 1  # the channel of 8; that of 30 is capped
    for feed in data:
        np.testing.assert_allclose(
            run(open_session(changed), feed)["y"], run(open_session(model), feed)["y"],
            rtol=1e-5, atol=1e-4,
        )  # fmt: skip


def test_three_deviations_below_the_mean_is_more_and_not_exact() -> None:
    random = np.random.default_rng(0)
    model = with_weights(conv())
    data = [{"x": random.normal(size=(200, 2, 4, 4)).astype(np.float32)} for _ in range(4)]
    data[0]["x"][0] *= 12  # one sample of many reaches far
    exactly, _ = absorbed(model, data)
    roughly, _ = absorbed(model, data, "deviation")
    size = {
        name: float(channel_extremes(m, {"a": 1}, data)["a"][0].max())
        for name, m in (("exact", exactly), ("rough", roughly))
    }
    assert size["rough"] < size["exact"]
    feed = data[1]
    want = run(open_session(model), feed)["y"]
    got = run(open_session(roughly), feed)["y"]
    assert 0 < np.abs(got - want).max() < 0.5 * np.abs(want).max()
    assert np.median(np.abs(got - want)) < 1e-4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (conv(how="pads = [1,1,1,1]").replace("w2", "w5"), "pads"),
        (conv(how="auto_pad = \"SAME_UPPER\"").replace("w2", "w5"), "pads"),
        (conv("p = Relu(c) a = AveragePool<kernel_shape = [2,2], pads = [1,1,1,1]>(p)"), "shift"),
        (LINEARS.format(rest="y = MatMul(a, u2)"), "no place"),
    ],
)  # fmt: skip
def test_what_cannot_take_a_shift_is_left_alone_with_a_reason(text: str, why: str) -> None:
    model = with_weights(text)
    _, found = absorbed(model, feeds_of(model))
    assert [item.code for item in found.diagnostics] == [Code.BIAS_KEPT]
    assert why in found.diagnostics[0].message


def test_without_high_biases_nothing_changes() -> None:
    model = with_weights(conv(), b1=np.zeros(3))
    _, found = absorbed(model, feeds_of(model))
    assert [item.code for item in found.diagnostics] == [Code.BIAS_KEPT]
    assert "always on" in found.diagnostics[0].message


def test_it_is_off_unless_the_recipe_asks() -> None:
    model = with_weights(conv())
    _, found = absorbed(model, feeds_of(model), how=False)
    assert not found.diagnostics


def test_spreads_are_those_of_all_the_data() -> None:
    model = with_weights(conv())
    data = feeds_of(model)
    found = channel_spreads(model, {"c": 1}, data)["c"]
    text = "g (float[n,2,4,4] x) => (float[n,o,h,w] c) { c = Conv(x, w1, b1) }"
    session = open_session(with_weights(text))
    rows = np.concatenate([run(session, x)["c"].transpose(0, 2, 3, 1).reshape(-1, 3) for x in data])
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.deviation, rows.std(0), rtol=1e-4)
    np.testing.assert_array_equal(found.lo, rows.min(0))
    np.testing.assert_array_equal(found.hi, rows.max(0))


def test_the_text_of_a_pair(golden: Callable[[str, str], None]) -> None:
    text = """g (float[N,1,1,2] x) => (float[N,1,1,2] y)
        <float[2,1,1,1] w1 = {1, -1}, float[2] b1 = {0, 10}, float[1,2,1,1] w2 = {3, 0.5}>
        { c = Conv(x, w1, b1) a = Relu(c) y = Conv(a, w2) }"""
    model = parse(text)
    data = [{"x": np.array([[[[1.0, 2.0]]]], np.float32)}] * 2  # the second channel: 8 and 9
    golden("absorb_biases/conv_pair", both(model, AbsorbBiases(), given=ready(model, data)))


def test_layers_that_stay_in_float_are_not_clipped() -> None:
    model = with_weights(
        CONVS.format(b1=", b1", b2=", b2", how="kernel_shape = [1, 1]", between="a = Relu(c)")
    )
    found = ready(model, feeds_of(model), "deviation")
    found.recipe = found.recipe.changed(rules=[{"match": "*", "scheme": "float"}])
    result = AbsorbBiases().run(model, found)
    assert not result.modified
    assert "stays in float" in result.diagnostics[0].message

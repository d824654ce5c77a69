"""Equalization: the same float function with balanced weights, and reasons where it is not done."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.algorithms.equalization import Link, Side, equalize
from qcompiler.calibration.feeds import open_feeds
from qcompiler.diagnostics import Code
from qcompiler.ir.edit import constant
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.verify.check import difference
from qcompiler_passes.prepare.equalize_layers import EqualizeLayers
from rewriting import opened, state

CONVS = """c1 = Conv(x, w1, b1)  a1 = {act}(c1{more})
           c2 = Conv<group = 6, pads = [1,1,1,1]>(a1, w2, b2)  a2 = {act}(c2{more})
           y = Conv(a2, w3, b3)"""
LINEARS = "m1 = MatMul(x, v1)  n1 = Add(m1, b1)  a1 = Relu(n1)  y = MatMul(a1, v2)"
SHAPES = {
    "w1": (6, 4, 1, 1), "b1": (6,), "w2": (6, 1, 3, 3), "b2": (6,), "w3": (5, 6, 1, 1),
    "b3": (5,), "v1": (4, 6), "v2": (6, 5), "lo": (), "hi": (),
}  # fmt: skip
PICTURE, ROWS = "float[n,4,8,8] x", "float[n,4] x"


def model_of(nodes: str, given: str, names: str, seed: int = 0, spread: float = 2.0) -> ir.Model:
    """Weights whose output channels differ by orders of magnitude."""
    declared = ", ".join(f"float[{','.join(map(str, SHAPES[n]))}] {n}" for n in names.split())
    model = opened(
        ir.from_onnx_text(
            f'<ir_version: 10, opset_import: ["" : 23]> g ({given}, {declared}) '
            f"=> (float[n,c,h,w] y) {{ {nodes} }}".replace("[n,c,h,w] y", "[n,5,8,8] y")
            if given == PICTURE
            else f'<ir_version: 10, opset_import: ["" : 23]> g ({given}, {declared}) '
            f"=> (float[n,5] y) {{ {nodes} }}"
        )
    )
    rng = np.random.default_rng(seed)
    for value in list(model.graph.inputs)[1:]:
        shape = SHAPES[value.name or ""]
        array = rng.standard_normal(shape).astype(np.float32)
        if value.name == "lo":
            array = np.array(0, np.float32)
        elif value.name == "hi":
            array = np.array(6, np.float32)
        elif len(shape) > 1:
            sizes = np.exp(spread * rng.standard_normal(6))
            axis = 1 if value.name == "v1" else 0 if len(array) == 6 else 1
            form = [1] * array.ndim
            form[axis] = 6
            array = (0.2 * array * sizes.reshape(form)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def feeds_of(model: ir.Model, seed: int = 1) -> list[dict[str, np.ndarray]]:
    shape = (2, 4) if len(model.graph.inputs[0].shape or ()) == 2 else (2, 4, 8, 8)
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]


def equalized(model: ir.Model, data: object = None, **recipe: object) -> tuple[ir.Model, State]:
    found = state()
    found.recipe = Recipe.of({"equalize_layers": True, **recipe})
    if data is not None:
        found.feeds = open_feeds(data, input_specs(model))
        found.sample = found.feeds.first
    result = model.clone()
    run_pipeline([EqualizeLayers()], result, found, check=True, compare=difference)
    return result, found


def ranges(model: ir.Model, name: str, axis: int) -> np.ndarray:
    array = constant(model.graph.initializers[name])
    assert array is not None
    rest = tuple(i for i in range(array.ndim) if i != axis)
    return np.abs(array).max(axis=rest)


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    return run(open_session(model), feed)["y"]


CASES = [
    (CONVS.format(act="Relu", more=""), PICTURE, "w1 b1 w2 b2 w3 b3"),
    (LINEARS, ROWS, "v1 b1 v2"),
]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(CASES), st.integers(0, 1000), st.floats(0.1, 4.0))
def test_what_is_computed_stays_on_any_input(
    case: tuple[str, str, str], seed: int, spread: float
) -> None:
    model = model_of(*case, seed=seed, spread=spread)
    changed, _ = equalized(model)
    for feed in feeds_of(model, seed):
        large = {"x": 100 * feed["x"]}
        want = outputs(model, large)
        np.testing.assert_allclose(
            outputs(changed, large), want, rtol=1e-4, atol=1e-4 * np.abs(want).max()
        )


def test_both_sides_of_each_pair_end_with_the_same_ranges() -> None:
    changed, found = equalized(model_of(*CASES[0]))
    np.testing.assert_allclose(ranges(changed, "w1", 0), ranges(changed, "w2", 0), rtol=0.01)
    np.testing.assert_allclose(ranges(changed, "w2", 0), ranges(changed, "w3", 1), rtol=0.01)
    assert [d.code for d in found.diagnostics] == [Code.EQUALIZED] * 2


def test_a_cap_that_binds_holds_its_channels_and_others_stay_under_it() -> None:
    nodes = CONVS.format(act="Clip", more=", lo, hi")
    model = model_of(nodes, PICTURE, "w1 b1 w2 b2 w3 b3 lo hi", seed=3)
    data = feeds_of(model)
    changed, found = equalized(model, data)  # the runner compares on the sample
    assert any(d.code is Code.EQUALIZED for d in found.diagnostics)
    for feed in data:
        want = outputs(model, feed)
        np.testing.assert_allclose(
            outputs(changed, feed), want, rtol=1e-4, atol=1e-4 * np.abs(want).max()
        )


def test_a_cap_without_data_is_left_alone_with_a_reason() -> None:
    nodes = CONVS.format(act="Clip", more=", lo, hi")
    _, found = equalized(model_of(nodes, PICTURE, "w1 b1 w2 b2 w3 b3 lo hi"))
    assert {d.code for d in found.diagnostics} == {Code.NOT_EQUALIZED}
    assert all("no data" in d.message for d in found.diagnostics)


@pytest.mark.parametrize(
    "nodes",
    [
        "c1 = Conv(x, w1, b1)  a1 = Sigmoid(c1)  y = Conv(a1, w3, b3)",
        "c1 = Conv(x, w1, b1)  z = Conv(c1, w3, b3)  s = ReduceMax(c1)  y = Add(z, s)",
        "c1 = Conv(x, w1, b1)  y = Conv(c1, w3, b3)  u = Conv(x, w1)",
    ],
    ids=["no positive homogeneity", "another reader", "shared weight"],
)
def test_a_pair_that_cannot_carry_factors_is_left_alone(nodes: str) -> None:
    model = model_of(nodes, PICTURE, "w1 b1 w3 b3")
    changed, found = equalized(model)
    assert [item.code for item in found.diagnostics] == [Code.KEY_UNUSED]
    np.testing.assert_array_equal(ranges(changed, "w1", 0), ranges(model, "w1", 0))


def test_it_is_off_unless_the_recipe_asks() -> None:
    _, found = equalized(model_of(*CASES[0]), equalize_layers=False)
    assert not found.diagnostics


def test_dead_channels_keep_factor_one() -> None:
    first, second = np.ones((1, 4, 3)), np.ones((1, 5, 4))
    first[0, 0], second[0, :, 1], first[0, 2] = 0, 0, 100
    (s,) = equalize([Link(Side(first), Side(second), np.zeros(4), np.full(4, np.inf))])
    np.testing.assert_allclose(s, [1, 1, 10, 1])

"""Gates take over the ranges of the channels they multiply: the same function, other scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph_text import with_weights
from qcompiler.calibration.extremes import channel_extremes
from qcompiler.calibration.feeds import open_feeds
from qcompiler.diagnostics import Code
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler_passes.prepare.equalize_gates import EqualizeGates
from rewriting import opened, state

BLOCK = """x = Conv<group = 4, pads = [1,1,1,1]>(in, w, b)  p = GlobalAveragePool(x)
           h = Conv(p, v, c)  r = Relu(h)  e = Conv(r, u)  g = HardSigmoid(e)
           y = Mul({operands}){more}"""
SHAPES = {"w": (4, 1, 3, 3), "b": (4,), "v": (2, 4, 1, 1), "c": (2,), "u": (4, 2, 1, 1)}


def block(operands: str = "x, g", more: str = "", seed: int = 0) -> ir.Model:
    """The third channel reaches forty times as far as the others."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["w"][2] *= 40
    text = BLOCK.format(operands=operands, more=more)
    declared = ", ".join(
        f"float[{','.join(map(str, a.shape))}] {name}" for name, a in arrays.items()
    )
    outputs = "float[n,4,6,6] y" + (", float[n,4,6,6] z" if more else "")
    model = with_weights(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[n,4,6,6] in, {declared})'
        f" => ({outputs}) {{ {text} }}",
        arrays,
    )
    return opened(model)


def equalized(model: ir.Model, recipe: str | dict = "static-int8", data: bool = True) -> State:
    rng = np.random.default_rng(9)
    feeds = [{"in": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)} for _ in range(3)]
    given = state()
    given.recipe = Recipe.of(recipe)
    given.feeds = open_feeds(feeds, input_specs(model)) if data else None
    run_pipeline([EqualizeGates()], model, given, check=True)
    return given


@pytest.mark.parametrize("operands", ["x, g", "g, x"])
def test_channels_reach_equally_far_and_the_function_stays(operands: str) -> None:
    model = block(operands)
    feed = {"in": np.random.default_rng(3).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    before = run(open_session(model), feed)["y"]
    told = equalized(model).diagnostics
    assert [item.code for item in told] == [Code.EQUALIZED]
    np.testing.assert_allclose(run(open_session(model), feed)["y"], before, rtol=1e-5, atol=1e-6)
    lo, hi = channel_extremes(model, {"x": 1}, [feed])["x"]
    ranges = np.maximum(-lo, hi)
    assert ranges.max() < 4 * ranges.min()


@pytest.mark.parametrize(
    ("model", "recipe", "data"),
    [
        (block(more=" z = Abs(x)"), "static-int8", True),  # somebody else reads the channels
        (block(operands="x, x"), "static-int8", True),  # no gate
        (block(), "dynamic-int8", True),
        (block(), {"base": "static-int8", "equalize_gates": False}, True),
        (block(), "static-int8", False),
    ],
)
def test_nothing_happens_without_a_gate_data_or_static_scales(
    model: ir.Model, recipe: str | dict, data: bool
) -> None:
    nodes = [node.op_type for node in model.graph]
    assert not equalized(model, recipe, data).diagnostics
    assert [node.op_type for node in model.graph] == nodes

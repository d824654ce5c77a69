"""Shapes and types of every value, found by running."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.text import model_text
from qcompiler.runtime import observe as module
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.observe import observe
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler_models.tiny import MODELS, build, feeds


@pytest.mark.parametrize("name", MODELS)
def test_every_value_of_the_main_graph_is_seen_and_the_model_is_left_alone(name: str) -> None:
    model = build(name)
    before = model_text(model)
    found = observe(model, feeds(name, 1)[0])
    assert model_text(model) == before
    made = {output.name for node in model.graph for output in node.outputs}
    assert made | {value.name for value in model.graph.inputs} <= set(found)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_inferred_is_what_a_run_gives(name: str) -> None:
    model, feed = build(name), feeds(name, 2)[1]
    found = observe(model, feed)
    tapped = model.clone()
    tapped.graph.outputs[:] = [output for node in tapped.graph for output in node.outputs]
    given = run(open_session(tapped, settings=SessionSettings("disable")), feed)
    for value, array in given.items():
        assert found[value] == (array.dtype, array.shape)


def test_a_shape_that_hangs_on_the_data_is_found_by_running() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[2,3] x) => (float s) { z = NonZero(x)  f = Cast<to=1>(z)  s = ReduceSum(f) }"""
    )
    x = np.array([[1, 0, 2], [0, 3, 0]], np.float32)
    assert observe(model, {"x": x})["f"] == (np.float32, (2, 3))


def test_the_shapes_are_those_of_the_feed() -> None:
    model = build("mlp")
    found = observe(model, {"x": np.zeros((7, 16), np.float32)})
    assert found["x"] == (np.float32, (7, 16))
    assert found["y"] == (np.float32, (7, 10))
    assert found["fc1.weight"] == (np.float32, (16, 32))


def test_a_sequence_value_is_absent() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[4] x) => (float[2] y) {
          s = SplitToSequence(x)
          i = Constant<value_int=1>()
          z = SequenceAt(s, i)
          y = Concat<axis=0>(z, z)
        }"""
    )
    found = observe(model, generate_feed(model))
    assert "s" not in found
    assert found["z"][1] == (1,)


def test_a_feed_that_does_not_fit_is_an_error_of_the_float_model() -> None:
    with pytest.raises(QcError) as caught:
        observe(build("mlp"), {"x": np.zeros((7, 15), np.float32)})
    assert caught.value.code is Code.FLOAT_MODEL_FAILS


@pytest.mark.parametrize("name", ["transformer", "convnet", "control_flow"])
def test_a_large_model_is_observed_without_its_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, feed = build(name), feeds(name, 1)[0]
    wanted = observe(model, feed)
    monkeypatch.setattr(module, "_WEIGHT", 64)
    monkeypatch.setattr(module, "_LARGE", 1)
    _, fed = module.weightless(model, feed)
    assert len(fed) > len(feed)
    before = model_text(model)
    assert observe(model, feed) == wanted
    assert model_text(model) == before

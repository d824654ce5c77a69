"""Models quantized by ONNX Runtime's tool, lowered again: same integers, same numbers."""

from __future__ import annotations

import itertools
import pathlib

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import strategies as st

from qcompiler.frontends import open_model
from qcompiler.plan import Verdict
from qcompiler.targets.schema import Form
from qcompiler_models import tiny
from quantized_by_others import HEAD, PLAIN, Feed, integers, outputs, quantize, relower

MODELS = ("mlp", "convnet", "residual", "transformer")


def opened(path: pathlib.Path) -> ir.Model:
    found = open_model(path)
    assert found.quantized
    return found.model


def close(a: list[np.ndarray], b: list[np.ndarray], tolerance: float) -> None:
    for x, y in zip(a, b, strict=True):
        bound = tolerance * float(np.abs(x).max(initial=1e-6))
        assert np.abs(x - y).max(initial=0.0) <= bound


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("activations", "weights"), [("u8", "s8"), ("u8", "u8"), ("s8", "s8")])
def test_the_portable_form_of_a_qdq_model_computes_the_very_same_numbers(
    name: str, activations: str, weights: str, tmp_path: pathlib.Path
) -> None:
    feeds = tiny.feeds(name, 3)
    model = opened(
        quantize(
            tiny.build(name),
            feeds,
            tmp_path,
            activations=activations,
            weights=weights,
            per_channel=weights == "s8",
        )
    )
    again, state = relower(model, feeds[0], Form.QDQ)
    assert state.plan is not None
    assert any(item.verdict is Verdict.QUANTIZED for item in state.plan)
    close(outputs(model, feeds[0]), outputs(again, feeds[0]), 2e-6)


@pytest.mark.parametrize(
    ("name", "form"),
    [*itertools.product(MODELS, ["qdq", "qoperator"]), ("transformer", "dynamic")],
)
def test_the_integers_of_the_weights_stay(name: str, form: str, tmp_path: pathlib.Path) -> None:
    feeds = tiny.feeds(name, 3)
    model = opened(quantize(tiny.build(name), feeds, tmp_path, form=form))
    again, state = relower(model, feeds[0])
    kept = integers(again)
    for weight in integers(model):
        assert weight in kept
    assert state.weights


@pytest.mark.parametrize("name", ["mlp", "convnet", "residual"])
def test_an_operator_model_computes_the_very_same_integers(
    name: str, tmp_path: pathlib.Path
) -> None:
    feeds = tiny.feeds(name, 3)
    model = opened(quantize(tiny.build(name), feeds, tmp_path, form="qoperator"))
    again, _state = relower(model, feeds[0])
    assert not any(n.op_type == "Conv" for n in again.graph)
    close(outputs(model, feeds[0]), outputs(again, feeds[0]), 1e-6)


def test_run_time_quantization_computes_the_same(tmp_path: pathlib.Path) -> None:
    feeds = tiny.feeds("transformer", 1)
    model = opened(quantize(tiny.build("transformer"), feeds, tmp_path, form="dynamic"))
    again, state = relower(model, feeds[0])
    kinds = {node.op_type for node in again.graph}
    assert "DynamicQuantizeMatMul" in kinds
    assert "MatMulInteger" not in kinds
    close(outputs(model, feeds[0]), outputs(again, feeds[0], state.session), 2e-2)


@pytest.mark.parametrize("activations", ["u8", "s8"])
def test_signed_activations_end_in_the_same_fast_operators(
    activations: str, tmp_path: pathlib.Path
) -> None:
    feeds = tiny.feeds("convnet", 3)
    model = opened(quantize(tiny.build("convnet"), feeds, tmp_path, activations=activations))
    again, _ = relower(model, feeds[0])
    convolutions = [node for node in again.graph if node.op_type == "QLinearConv"]
    assert convolutions
    for node in convolutions:
        assert node.inputs[2].dtype is ir.DataType.UINT8  # type: ignore[union-attr]
        assert node.inputs[5].dtype is ir.DataType.INT8  # type: ignore[union-attr]


@st.composite
def nets(draw: st.DrawFn) -> tuple[ir.Model, Feed, dict[str, object]]:
    """A chain of convolutions and linear layers, with how it shall be quantized."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    lines, weights = [], {}
    x, channels = "x", 3
    for index in range(draw(st.integers(1, 3))):
        wide = draw(st.sampled_from([2, 4, 5]))
        weights[f"w{index}"] = rng.normal(size=(wide, channels, 3, 3)).astype(np.float32)
        weights[f"b{index}"] = rng.normal(size=wide).astype(np.float32)
        lines.append(f"c{index} = Conv<pads=[1,1,1,1]>({x}, w{index}, b{index})")
        x, channels = f"c{index}", wide
        if draw(st.booleans()):
            lines.append(f"r{index} = Relu({x})")
            x = f"r{index}"
        if draw(st.booleans()):
            lines.append(f"m{index} = MaxPool<kernel_shape=[2,2]>({x})")
            x = f"m{index}"
        if draw(st.booleans()):
            lines.append(f"s{index} = Add({x}, {x})")
            x = f"s{index}"
    lines.append(f"g = GlobalAveragePool({x})")
    lines.append("f = Flatten(g)")
    weights["w"] = rng.normal(size=(channels, 4)).astype(np.float32)
    weights["b"] = rng.normal(size=4).astype(np.float32)
    if draw(st.booleans()):
        lines.append("y = Gemm(f, w, b)")
    else:
        lines += ["h = MatMul(f, w)", "y = Add(h, b)"]
    body = "\n".join(lines)
    model = ir.from_onnx_text(f"{HEAD} net (float[2,3,8,8] x) => (float[2,4] y) {{\n{body}\n}}")
    for name, array in weights.items():
        value = _value(model, name)
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        model.graph.initializers[name] = value
    how: dict[str, object] = {
        "form": draw(st.sampled_from(["qdq", "qoperator"])),
        "activations": draw(st.sampled_from(["u8", "s8"])),
        "per_channel": draw(st.booleans()),
    }
    how["weights"] = "s8" if how["activations"] == "s8" else draw(st.sampled_from(["u8", "s8"]))
    return model, {"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}, how


def _value(model: ir.Model, name: str) -> ir.Value:
    return next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)


@hypothesis.settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(net=nets())
def test_drawn_nets_keep_their_integers_and_their_numbers(
    net: tuple[ir.Model, Feed, dict[str, object]], tmp_path: pathlib.Path
) -> None:
    model, feed, how = net
    if how["form"] == "qoperator" and how["weights"] == "u8":
        how["per_channel"] = False
    came = opened(quantize(model, [feed], tmp_path, **how))  # type: ignore[arg-type]
    want = outputs(came, feed)
    portable, _ = relower(came, feed, Form.QDQ)
    native, state = relower(came, feed, Form.ORT)
    kept = integers(native)
    assert all(weight in kept for weight in integers(came))
    if how["form"] == "qdq":
        close(want, outputs(portable, feed), 2e-6)
    # integer kernels may round what lies between two steps to the other side: a step or two
    close(want, outputs(native, feed, state.session), 0.05)
    close(outputs(native, feed, PLAIN), outputs(native, feed, state.session), 1e-5)

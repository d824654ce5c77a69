"""What comes quantized and does not fit: kept with a coded reason; rules, strip, float, traps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.quantized import quantized_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import Verdict
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form
from quantized_by_others import HEAD, Feed, outputs, relower


def build(body: str, weights: Mapping[str, np.ndarray], head: str = HEAD, io: str = "") -> ir.Model:
    io = io or "(float[4,8] x) => (float[4,6] y)"
    model = ir.from_onnx_text(f"{head} net {io} {{\n{body}\n}}")
    uses = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in weights.items():
        value = uses[name]
        value.const_value = ir.tensor(array, name=name)
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(array.shape)
        model.graph.initializers[name] = value
    return open_model(model).model


LINEAR = """
    xq = QuantizeLinear(x, xs, xz)
    xd = DequantizeLinear(xq, xs, xz)
    wd = DequantizeLinear<axis=1>(wq, ws, wz)
    y = MatMul(xd, wd)
"""


def linear(seed: int = 0, x: type = np.uint8, w: type = np.int8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    low = 0 if w is np.uint8 else -128
    return {
        "xs": np.float32(0.02).reshape(()),
        "xz": np.array(120 if x is np.uint8 else -8, x),
        "wq": rng.integers(low, low + 256, size=(8, 6)).astype(w),
        "ws": rng.uniform(0.01, 0.02, 6).astype(np.float32),
        "wz": np.full(6, 128 if w is np.uint8 else 0, w),
    }


def feed(seed: int = 1) -> Feed:
    return {"x": np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)}


def reason(model: ir.Model, name: str, **options: object) -> Code:
    _, state = relower(model, feed(), **options)  # type: ignore[arg-type]
    assert state.plan is not None
    decision = state.plan.nodes[name]
    assert decision.verdict is Verdict.FLOAT
    assert decision.reason is not None
    return decision.reason.code


def name_of(model: ir.Model, op: str) -> str:
    return str(next(node.name for node in model.graph if node.op_type == op))


@pytest.mark.parametrize("x", [np.uint8, np.int8])
@pytest.mark.parametrize("w", [np.uint8, np.int8])
def test_any_mix_of_signs_ends_as_u8_times_s8_and_rounds_nothing(x: type, w: type) -> None:
    model = build(LINEAR, linear(x=x, w=w))
    again, state = relower(model, feed())
    kernels = [node for node in again.graph if node.op_type == "MatMulIntegerToFloat"]
    assert [node.inputs[0].dtype for node in kernels] == [ir.DataType.UINT8]  # type: ignore[union-attr]
    assert [node.inputs[1].dtype for node in kernels] == [ir.DataType.INT8]  # type: ignore[union-attr]
    want, got = outputs(model, feed())[0], outputs(again, feed())[0]
    assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()
    assert state.weights is not None
    (tensor,) = state.weights.values()
    shift = 128 if w is np.uint8 else 0
    came = model.graph.initializers["wq"].const_value.numpy().astype(int) - shift  # type: ignore[union-attr]
    assert np.array_equal(tensor.q, came)


def test_weights_are_read_anew_whenever_they_are_asked_for() -> None:
    _, state = relower(build(LINEAR, linear(w=np.int8)), feed())
    assert state.weights is not None
    (key,) = state.weights
    first, second = state.weights[key], state.weights[key]
    assert first is not second
    np.testing.assert_array_equal(first.dequantize(), second.dequantize())


def test_plan_and_ranges_say_what_came() -> None:
    model = build(LINEAR, linear())
    _, state = relower(model, feed())
    assert state.plan is not None
    assert {item.verdict for item in state.plan} == {Verdict.QUANTIZED, Verdict.FUSED}
    assert str(state.plan.values["x"].spec) == "u8tz"  # type: ignore[union-attr]
    assert state.ranges is not None
    found = state.ranges["x"]
    assert float(found.lo) == pytest.approx(-2.4)
    assert float(found.hi) == pytest.approx(2.7)


def test_scales_along_the_reduced_axis_are_a_trap() -> None:
    weights = linear()
    weights["ws"] = np.full(8, 0.01, np.float32)
    weights["wz"] = np.zeros(8, np.int8)
    model = build(LINEAR.replace("axis=1", "axis=0"), weights)
    assert reason(model, name_of(model, "MatMul")) is Code.TRAP


def test_a_scale_per_channel_of_an_activation_fits_no_kernel_and_computes_the_same() -> None:
    weights = linear()
    weights["xs"] = np.linspace(0.01, 0.03, 8).astype(np.float32)
    weights["xz"] = np.full(8, 120, np.uint8)
    body = LINEAR.replace("QuantizeLinear(x", "QuantizeLinear<axis=1>(x").replace(
        "DequantizeLinear(xq", "DequantizeLinear<axis=1>(xq"
    )
    model = build(body, weights)
    assert reason(model, name_of(model, "MatMul")) is Code.CONDITION
    again, state = relower(model, feed())
    assert np.allclose(
        outputs(model, feed())[0], outputs(again, feed(), state.session)[0], atol=1e-5
    )


def test_a_weight_computed_at_run_time_stays_as_it_came() -> None:
    body = """
        xq = QuantizeLinear(x, xs, xz)
        xd = DequantizeLinear(xq, xs, xz)
        t = Transpose<perm=[1,0]>(xd)
        y = MatMul(xd, t)
    """
    weights = {key: value for key, value in linear().items() if key.startswith("x")}
    model = build(body, weights, io="(float[4,8] x) => (float[4,4] y)")
    assert reason(model, name_of(model, "MatMul")) is Code.NOT_CONSTANT


def test_a_symmetric_target_takes_what_is_symmetric_and_tells_why_not() -> None:
    weights = linear()
    model = build(LINEAR, weights)
    options = {"form": Form.QDQ, "target": "tensorrt"}
    assert reason(model, name_of(model, "MatMul"), **options) is Code.CONDITION
    weights["xz"] = np.array(128, np.uint8)
    model = build(LINEAR, weights)
    again, state = relower(model, feed(), **options)  # type: ignore[arg-type]
    assert state.plan is not None
    assert state.plan.count()["quantized"] == 1
    assert str(state.plan.values["x"].spec) == "s8t"  # type: ignore[union-attr]
    assert np.array_equal(outputs(model, feed())[0], outputs(again, feed())[0])


def test_weights_of_8_bits_are_a_trap_where_sums_saturate() -> None:
    model = build(LINEAR, linear())
    assert reason(model, name_of(model, "MatMul"), target="cpu-avx2") is Code.TRAP
    weights = linear()
    weights["wq"] = np.clip(weights["wq"], -63, 63)
    again, _ = relower(build(LINEAR, weights), feed(), target="cpu-avx2")
    assert any(node.op_type == "MatMulIntegerToFloat" for node in again.graph)


def test_a_rule_keeps_a_node_with_its_conversions() -> None:
    model = build(LINEAR, linear())
    name = name_of(model, "MatMul")
    recipe = {"name": "mine", "rules": [{"match": name, "scheme": "float"}]}
    assert reason(model, name, recipe=recipe) is Code.KEPT_BY_RULE
    again, state = relower(model, feed(), recipe=recipe)
    assert np.array_equal(outputs(model, feed())[0], outputs(again, feed(), state.session)[0])


def test_the_recipe_float_takes_the_quantization_out() -> None:
    model = build(LINEAR, linear())
    again, _ = relower(model, feed(), recipe="float")
    assert [node.op_type for node in again.graph] == ["MatMul"]
    weights = linear()
    want = feed()["x"] @ (weights["wq"].astype(np.float32) * weights["ws"])
    assert np.allclose(outputs(again, feed())[0], want, rtol=1e-4, atol=1e-4)


def test_strip_takes_conversions_out_where_no_kernel_is() -> None:
    body = (
        LINEAR.replace("y =", "m =")
        + """
        mq = QuantizeLinear(m, ms, mz)
        md = DequantizeLinear(mq, ms, mz)
        y = Softmax(md)
    """
    )
    weights = {**linear(), "ms": np.array(0.03, np.float32), "mz": np.array(128, np.uint8)}
    model = build(body, weights)
    kept, _ = relower(model, feed())
    assert [n.op_type for n in kept.graph] == [
        "QuantizeLinear",
        "QLinearMatMul",
        "DequantizeLinear",
        "Softmax",
    ]
    assert np.array_equal(outputs(model, feed())[0], outputs(kept, feed())[0])


def test_a_fake_quantized_weight_becomes_the_integers_it_stands_for() -> None:
    weights = linear()
    floats = (weights["wq"].astype(np.float32) * weights["ws"]).astype(np.float32)
    body = LINEAR.replace("wd =", "wq = QuantizeLinear<axis=1>(w, ws, wz)\nwd =")
    model = build(body, {**{k: v for k, v in weights.items() if k != "wq"}, "w": floats})
    _, state = relower(model, feed())
    assert state.weights is not None
    (tensor,) = state.weights.values()
    assert np.array_equal(tensor.q, weights["wq"])


def test_a_transposed_weight_is_turned_and_its_scales_with_it() -> None:
    weights = linear()
    weights["wq"] = np.ascontiguousarray(weights["wq"].T)
    body = (
        LINEAR.replace("wd =", "t =")
        .replace("axis=1>(wq", "axis=0>(wq")
        .replace("y = MatMul", "wd = Transpose<perm=[1,0]>(t)\ny = MatMul")
    )
    model = build(body, weights)
    again, _ = relower(model, feed())
    assert [n.op_type for n in again.graph] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    want = outputs(model, feed())[0]
    assert np.abs(want - outputs(again, feed())[0]).max() <= 1e-5 * np.abs(want).max()


def test_a_float_bias_of_a_convolution_is_rounded_and_one_that_does_not_fit_is_told() -> None:
    body = """
        xq = QuantizeLinear(x, xs, xz)
        xd = DequantizeLinear(xq, xs, xz)
        wd = DequantizeLinear<axis=0>(wq, ws, wz)
        c = Conv(xd, wd, b)
        yq = QuantizeLinear(c, ys, yz)
        y = DequantizeLinear(yq, ys, yz)
    """
    rng = np.random.default_rng(0)
    weights = {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(120, np.uint8),
        "wq": rng.integers(-127, 128, size=(6, 3, 2, 2)).astype(np.int8),
        "ws": np.full(6, 0.01, np.float32),
        "wz": np.zeros(6, np.int8),
        "b": rng.normal(size=6).astype(np.float32),
        "ys": np.array(0.05, np.float32),
        "yz": np.array(128, np.uint8),
    }
    io = "(float[1,3,5,5] x) => (float[1,6,4,4] y)"
    image = {"x": rng.normal(size=(1, 3, 5, 5)).astype(np.float32)}
    model = build(body, weights, io=io)
    again, state = relower(model, image)
    assert any(node.op_type == "QLinearConv" for node in again.graph)
    want, got = outputs(model, image)[0], outputs(again, image)[0]
    assert np.abs(want - got).max() <= 0.05 * 1.001
    model = build(body, {**weights, "ws": np.full(6, 1e-12, np.float32)}, io=io)
    _, state = relower(model, image)
    assert state.plan is not None
    kept = state.plan.nodes[name_of(model, "Conv")]
    assert kept.reason is not None
    assert "does not fit int32" in kept.reason.message


def test_every_node_has_a_verdict_and_a_reason_where_it_is_float() -> None:
    model = build(LINEAR.replace("y =", "m =") + "y = Relu(m)", linear())
    again, state = relower(model, feed(), Form.QDQ)
    assert state.plan is not None
    assert set(state.plan.nodes) == {node.name for node in again.graph}
    assert all(item.reason for item in state.plan if item.verdict is Verdict.FLOAT)


DEPTHWISE = """
    xq = QuantizeLinear(x, xs, xz)
    xd = DequantizeLinear(xq, xs, xz)
    wd = DequantizeLinear<axis=0>(wq, ws, wz)
    c = Conv(xd, wd, b)
    r = Clip(c, low, high)
    rq = QuantizeLinear<axis=1>(r, rs, rz)
    rd = DequantizeLinear<axis=1>(rq, rs, rz)
    dd = DequantizeLinear<axis=0>(dq, ds, dz)
    e = Conv<group=4>(rd, dd)
    yq = QuantizeLinear(e, ys, yz)
    y = DequantizeLinear(yq, ys, yz)
"""


def depthwise(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(120, np.uint8),
        "wq": rng.integers(-127, 128, size=(4, 3, 2, 2)).astype(np.int8),
        "ws": rng.uniform(0.005, 0.01, 4).astype(np.float32),
        "wz": np.zeros(4, np.int8),
        "b": rng.normal(size=4).astype(np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "rs": rng.uniform(0.005, 0.02, 4).astype(np.float32),
        "rz": np.zeros(4, np.uint8),
        "dq": rng.integers(-127, 128, size=(4, 1, 2, 2)).astype(np.int8),
        "ds": rng.uniform(0.005, 0.01, 4).astype(np.float32),
        "dz": np.zeros(4, np.int8),
        "ys": np.array(0.03, np.float32),
        "yz": np.array(128, np.uint8),
    }


@pytest.mark.parametrize("form", Form)
def test_scales_per_channel_before_a_depthwise_convolution_move_into_weights(form: Form) -> None:
    io = "(float[1,3,6,6] x) => (float[1,4,4,4] y)"
    image = {"x": np.random.default_rng(3).normal(size=(1, 3, 6, 6)).astype(np.float32)}
    weights = depthwise()
    model = build(DEPTHWISE, weights, io=io)
    again, state = relower(model, image, form)
    assert state.plan is not None
    assert state.plan.count()["quantized"] == 2
    want, got = outputs(model, image)[0], outputs(again, image)[0]
    assert np.abs(want - got).max() <= 0.03 * 1.001  # one step, where the float lay between two
    assert (np.abs(want - got) > 1e-6).mean() < 0.05
    assert state.weights is not None
    for tensor, name in zip(state.weights.values(), ("wq", "dq"), strict=True):
        assert np.array_equal(tensor.q, weights[name])


def test_a_clamp_that_saturation_does_not_do_keeps_the_scales_per_channel() -> None:
    io = "(float[1,3,6,6] x) => (float[1,4,4,4] y)"
    image = {"x": np.random.default_rng(3).normal(size=(1, 3, 6, 6)).astype(np.float32)}
    weights = {**depthwise(), "high": np.array(0.5, np.float32)}
    model = build(DEPTHWISE, weights, io=io)
    again, state = relower(model, image)
    assert state.plan is not None
    assert "quantized" not in state.plan.count()
    assert np.allclose(outputs(model, image)[0], outputs(again, image, state.session)[0], atol=1e-5)


def test_a_given_plan_keeps_nodes_as_they_came() -> None:
    model = build(LINEAR, linear())
    name = name_of(model, "MatMul")
    _, state = relower(model, feed())
    assert state.plan is not None
    again = model.clone()
    edited = state.plan.keep_float(name)
    second = State(state.target, state.recipe, state.form, sample=feed(), plan=edited)
    run_pipeline(quantized_pipeline(), again, second, check=True)
    assert second.plan is not None
    assert second.plan.nodes[name].reason is not None
    assert second.plan.nodes[name].reason.code is Code.KEPT_BY_RULE
    other = State(load_target("tensorrt"), state.recipe, Form.QDQ, sample=feed(), plan=edited)
    with pytest.raises(QcError, match="was made for target"):
        run_pipeline(quantized_pipeline(), model.clone(), other)


RELU_IN_RANGE = (
    LINEAR.replace("y =", "m =")
    + """
    mq = QuantizeLinear(m, ms, mz)
    md = DequantizeLinear(mq, ms, mz)
    y = Sin(md)
"""
)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("recipe", "target"), [("float", "cpu-vnni"), ({"quantized": {"strip": True}}, "tensorrt")]
)
def test_a_relu_that_a_range_holds_is_written_out_with_its_upper_end(
    dtype: type, recipe: object, target: str
) -> None:
    smallest = np.array(np.iinfo(dtype).min, dtype)
    weights = {**linear(), "ms": np.array(0.01, np.float32), "mz": smallest}
    model = build(RELU_IN_RANGE, weights)
    again, state = relower(model, feed(), Form.QDQ, target, recipe)
    assert [node.op_type for node in again.graph].count("Clip") == 1
    want, got = outputs(model, feed())[0], outputs(again, feed(), state.session)[0]
    np.testing.assert_allclose(got, want, atol=0.06)  # the input is no longer rounded
    assert np.isclose(want, np.sin(2.55), atol=1e-5).any()  # the upper end is reached


def test_what_is_never_negative_needs_no_clamp() -> None:
    body = RELU_IN_RANGE.replace("QuantizeLinear(m,", "QuantizeLinear(p,", 1)
    body = body.replace("mq =", "p = Sigmoid(m)\n    mq =")
    weights = {**linear(), "ms": np.array(0.01, np.float32), "mz": np.array(0, np.uint8)}
    again, _ = relower(build(body, weights), feed(), recipe="float")
    assert [node.op_type for node in again.graph] == ["MatMul", "Sigmoid", "Sin"]


def nbits(level: int | None) -> ir.Model:
    said = "" if level is None else f", accuracy_level = {level}"
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[4,64] x) => (float[4,64] y) {{
      m = com.microsoft.MatMulNBits<K=64, N=64, bits=4, block_size=32{said}>(x, w, s)
      y = com.microsoft.MatMulNBits<K=64, N=64, bits=4, block_size=32{said}>(m, w, s)
    }}"""
    model, rng = ir.from_onnx_text(text), np.random.default_rng(0)
    for name, array in (
        ("w", rng.integers(0, 256, (64, 2, 16)).astype(np.uint8)),
        ("s", rng.uniform(0.01, 0.02, 128).astype(np.float32)),
    ):
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == name:
                    node.replace_input_with(index, value)
    return open_model(model).model


def test_float_products_of_few_bits_round_activations_now_and_it_is_told() -> None:
    x = {"x": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)}
    want = outputs(nbits(None), x)[0]
    again, state = relower(nbits(None), x)
    [told] = [item for item in state.diagnostics if item.code is Code.ROUNDED_ACTIVATIONS]
    assert told.values == {"nodes": 2}
    assert [node.attributes.get_int("accuracy_level", 0) for node in again.graph] == [4, 4]
    exact, state = relower(nbits(None), x, recipe={"weights": {"accuracy_level": 1}})
    assert not any(item.code is Code.ROUNDED_ACTIVATIONS for item in state.diagnostics)
    np.testing.assert_allclose(outputs(exact, x)[0], want, rtol=1e-4, atol=1e-4)
    _, state = relower(nbits(None), x, recipe="float")
    assert not any(item.code is Code.ROUNDED_ACTIVATIONS for item in state.diagnostics)
    _, state = relower(nbits(4), x)
    assert not any(item.code is Code.ROUNDED_ACTIVATIONS for item in state.diagnostics)


def test_another_tool_s_8_bit_floats_come_in() -> None:
    fp8 = ir.DataType.FLOAT8E4M3FN
    text = """<ir_version: 10, opset_import: ["" : 19]>
    g (float[4,8] x) => (float[4,8] y) {
      xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)
      wd = DequantizeLinear(w, s, z)
      m = MatMul(xd, wd)  mq = QuantizeLinear(m, s, z)  y = DequantizeLinear(mq, s, z)
    }"""
    model, rng = ir.from_onnx_text(text), np.random.default_rng(0)
    arrays = {
        "s": ir.tensor(np.array(0.05, np.float32)),
        "z": ir.Tensor(np.zeros((), fp8.numpy()), dtype=fp8),
        "w": ir.Tensor(rng.standard_normal((8, 8)).astype(fp8.numpy()), dtype=fp8),
    }
    for name, tensor in arrays.items():
        tensor.name = name
        value = ir.Value(name=name, const_value=tensor)
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == name:
                    node.replace_input_with(index, value)
    for target in ("cpu", "generic-qdq", "openvino"):
        artifact = qcompile(model, target=target)
        assert all(item["cosine"] > 0.9999 for item in artifact.report.fidelity), target


def test_strip_that_finds_nothing_says_so() -> None:
    _, state = relower(build(LINEAR, linear()), feed(), recipe={"quantized": {"strip": True}})
    assert [i.where for i in state.diagnostics if i.code is Code.KEY_UNUSED] == ["quantized.strip"]

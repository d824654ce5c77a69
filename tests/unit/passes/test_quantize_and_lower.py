"""Errors, edge cases and settings of quantize-weights, insert-qdq, to-ort and finish-qdq."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from by_hand import Form, Hand, QuantizeWeights, open_text, ops, run_ort
from qcompiler.diagnostics import Code, QcError
from qcompiler.plan import Same
from qcompiler.runtime.kernels import optimized_graph
from qcompiler.runtime.session import open_session

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(head: str = HEAD) -> ir.Model:
    return open_text(
        f"{head} g (float[3,32] x) => (float[3,6] y) {{ y = MatMul(x, w) }}", {"w": image(32, 6)}
    )


def test_an_unknown_kernel_is_refused() -> None:
    hand = Hand(linear(), {"Y": ("matmul-quantum", "u8tz,s8c@1->-")}, {"x": "u8tz"}, {"x": (-1, 1)})
    with pytest.raises(QcError, match="no lowering of kernel 'matmul-quantum'") as caught:
        hand.lowered()
    assert caught.value.code is Code.NO_LOWERING


def test_a_kernel_on_the_wrong_form_of_operand_is_refused() -> None:
    hand = Hand(linear(), {"Y": ("matmul-dynamic", "u8tz,s8c@1->-")}, {"x": "u8tz"}, {"x": (-1, 1)})
    with pytest.raises(QcError, match="not quantized at run time"):
        hand.lowered()


def test_a_missing_range_is_a_bad_plan() -> None:
    hand = Hand(linear(), {"Y": ("matmul-static", "u8tz,s8c@1->-")}, {"x": "u8tz"})
    with pytest.raises(QcError, match="no calibrated range") as caught:
        hand.lowered()
    assert caught.value.code is Code.BAD_PLAN


def test_a_missing_intent_is_a_bad_plan() -> None:
    hand = Hand(linear(), {"Y": ("matmul-static", "u8tz,s8c@1->-")})
    with pytest.raises(QcError, match="no intent for it") as caught:
        hand.lowered()
    assert caught.value.code is Code.BAD_PLAN


def test_blocks_need_opset_21_in_the_portable_form() -> None:
    old = HEAD.replace("23", "20")
    hand = Hand(linear(old), {"Y": ("matmul-weight", "-,u4g32@0->-")})
    assert ops(hand.lowered(Form.ORT)[0]) == ["MatMulNBits"]
    with pytest.raises(QcError, match="needs opset 21, the model has 20"):
        hand.lowered(Form.QDQ)


def test_token_rows_reduce_by_attribute_below_opset_18() -> None:
    hand = Hand(linear(HEAD.replace("23", "17")), {"Y": ("matmul-token", "u8kd,s8c@1->-")})
    native, settings = hand.lowered()
    x = image(3, 32)
    (found,) = run_ort(native, {"x": x}, settings)
    assert np.abs(found - run_ort(hand.model, {"x": x})[0]).max() < 0.2


def test_weights_that_are_not_finite_name_the_node() -> None:
    w = image(32, 6)
    w[3, 3] = np.nan
    model = open_text(
        f"{HEAD} g (float[3,32] x) => (float[3,6] y) {{ y = MatMul(x, w) }}", {"w": w}
    )
    hand = Hand(model, {"Y": ("matmul-token", "u8kd,s8c@1->-")})
    with pytest.raises(QcError, match="QC301 w of Y"):
        hand.dialect()


def test_transformers_run_final_operators_and_convolutions_get_layouts() -> None:
    hand = Hand(linear(), {"Y": ("matmul-token", "u8kd,s8c@1->-")})
    assert hand.lowered()[1].level == "disable"
    model = open_text(
        f"{HEAD} g (float[1,4,6,6] x) => (float[a,b,c,d] y) {{ y = Conv(x, w) }}",
        {"w": image(3, 4, 1, 1)},
    )
    settings = Hand(model, {}).lowered()[1]
    assert settings.level == "all"
    assert settings.entries["session.disable_quant_qdq"] == "1"


@pytest.mark.parametrize("plan", [{}, {"M": ("matmul-token", "u8kd,s8c@1->-")}])
def test_a_tied_table_is_turned_when_the_model_is_loaded_and_not_at_each_run(plan) -> None:
    model = open_text(
        f"""{HEAD} g (int64[2] i) => (float[2,40] y) {{
        e = Gather(table, i) m = MatMul(e, w) t = Transpose<perm = [1,0]>(table) y = MatMul(m, t)
        }}""",
        {"table": image(40, 16), "w": image(16, 16)},
    )
    native, settings = Hand(model, plan).lowered()
    assert "Transpose" in ops(native)
    run = [node.op for node in optimized_graph(native, settings)]
    assert "Transpose" not in run
    assert ("com.microsoft:MatMulIntegerToFloat" in run) is bool(plan)


def mixed_convolutions() -> Hand:
    """Quantized, float and quantized convolutions, and a float pooling between quantized ones."""
    model = open_text(
        f"""{HEAD} g (float[1,16,12,12] x) => (float[a,b,c,d] y) {{
        c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w1) d = Conv(c, w2) r = Relu(d)
        e = Conv(r, w3) p = AveragePool<kernel_shape = [2,2]>(e) y = Conv(p, w4) }}""",
        {
            "w1": image(16, 16, 3, 3) * 0.2,
            **{f"w{i}": image(16, 16, 1, 1, seed=i) * 0.3 for i in (2, 3, 4)},
        },
    )
    stored = ("conv-static", "u8tz,s8c@0->u8tz")
    return Hand(
        model,
        dict.fromkeys("CEY", stored),
        dict.fromkeys("xcrepy", "u8tz"),
        {"x": (-3, 3), "c": (-9, 9), "r": (0, 9), "e": (-9, 9), "p": (-9, 9), "y": (-9, 9)},
    )


@pytest.mark.parametrize("form", list(Form))
def test_float_nodes_between_quantized_ones_stay_float(form: Form, tmp_path) -> None:
    native, settings = mixed_convolutions().lowered(form)
    path = tmp_path / "optimized.onnx"
    open_session(native, settings=settings, optimized_path=path)
    seen = [node.op_type for node in onnx.load(path).graph.node]
    assert seen.count("QLinearConv") == 3
    assert seen.count("Conv") == 1
    if form is Form.ORT:
        assert "QLinearAveragePool" not in seen


def test_chains_of_convolutions_run_without_transposes_between(tmp_path) -> None:
    model = open_text(
        f"""{HEAD} g (float[1,16,12,12] x) => (float[a,b,c,d] y) {{
        c = Conv<kernel_shape = [3,3]>(x, w1) r = Relu(c) p = MaxPool<kernel_shape = [2,2]>(r)
        d = Conv(p, w2) a = Add(d, p) y = Conv(a, w3) }}""",
        {"w1": image(16, 16, 3, 3), **{f"w{i}": image(16, 16, 1, 1, seed=i) for i in (2, 3)}},
    )
    stored = ("conv-static", "u8tz,s8c@0->u8tz")
    hand = Hand(
        model,
        {**dict.fromkeys("CDY", stored), "A": ("add-static", "u8tz,u8tz->u8tz")},
        {**dict.fromkeys("xrday", "u8tz"), "p": Same("r")},
        {"x": (-3, 3), "r": (0, 40), "d": (-90, 90), "a": (-90, 90), "y": (-200, 200)},
        {"R": "C"},
        ["P"],
    )
    native, settings = hand.lowered()
    path = tmp_path / "optimized.onnx"
    open_session(native, settings=settings, optimized_path=path)
    seen = [node.op_type for node in onnx.load(path).graph.node]
    first = seen.index("QLinearConv")
    last = len(seen) - 1 - seen[::-1].index("QLinearConv")
    assert "Transpose" not in seen[first:last]
    assert "QLinearAdd" in seen[first:last]


def test_a_split_is_carried_to_every_output() -> None:
    model = open_text(
        f"""{HEAD} g (float[2,6,4] x) => (float[2,3,4] y, float[2,3,4] z)
        {{ y, z = Split<axis = 1, num_outputs = 2>(x) }}""",
        {},
    )
    hand = Hand(
        model, {}, {"x": "u8tz", "y": Same("x"), "z": Same("x")}, {"x": (-3, 3)}, carried=["Y"]
    )
    native, settings = hand.lowered()
    assert ops(native) == ["QuantizeLinear", "Split", "DequantizeLinear", "DequantizeLinear"]
    feed = {"x": image(2, 6, 4)}
    for one, other in zip(
        run_ort(hand.dialect(), feed), run_ort(native, feed, settings), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("form", list(Form))
def test_float16_layers_hand_integers_on_without_the_cast_between(form: Form) -> None:
    model = open_text(
        f"""{HEAD} g (float16[3,32] x) => (float16[3,6] z, float16[3,16] t) <float16[3,16] y>
        {{ y = MatMul(x, w) z = MatMul(y, v) t = Tanh(y) }}""",
        {"w": image(32, 16).astype(np.float16) / 6, "v": image(16, 6).astype(np.float16) / 4},
    )
    kernels = dict.fromkeys("YZ", ("matmul-static", "u8tz,s8c@1->-"))
    values = {"x": "u8tz", "y": "u8tz"}
    hand = Hand(model, kernels, values, {"x": (-3, 3), "y": (-4, 4)})
    lowered, settings = hand.lowered(form)
    feed = {"x": image(3, 32).astype(np.float16)}
    for want, found in zip(run_ort(model, feed), run_ort(lowered, feed, settings), strict=True):
        assert found.dtype == np.float16
        assert np.abs(want.astype(np.float32) - found).max() < 0.1


def test_unified_inputs_of_a_concat_share_parameters() -> None:
    model = open_text(
        f"""{HEAD} g (float[2,3,4] a, float[2,5,4] b) => (float[2,9,4] y)
        {{ y = Concat<axis = 1>(a, b, c) }}""",
        {"c": image(2, 1, 4)},
    )
    same = Same("a")
    hand = Hand(
        model, {}, {"a": "u8tz", "b": same, "c": same, "y": same}, {"a": (-3, 3)}, carried=["Y"]
    )
    native, settings = hand.lowered()
    assert ops(native) == ["QuantizeLinear", "QuantizeLinear", "Concat", "DequantizeLinear"]
    assert len([name for name in native.graph.initializers if name.endswith("scale")]) == 1
    feed = {"a": image(2, 3, 4), "b": image(2, 5, 4, seed=1)}
    assert np.array_equal(run_ort(hand.dialect(), feed)[0], run_ort(native, feed, settings)[0])


def test_float_weights_are_gone_and_the_rest_stays() -> None:
    model = open_text(
        f"""{HEAD} g (float[3,32] x) => (float[3,6] y, float[32,6] t)
        {{ y = MatMul(x, w) z = MatMul(x, v) t = Tanh(v) }}""",
        {"w": image(32, 6), "v": image(32, 6, seed=1)},
    )
    hand = Hand(model, dict.fromkeys("YZ", ("matmul-token", "u8kd,s8c@1->-")))
    names = set(hand.dialect().graph.initializers)
    assert "w" not in names
    assert "v" in names  # a float node reads it too


def test_nothing_planned_leaves_the_model_alone() -> None:
    hand = Hand(linear(), {})
    for form in Form:
        model, _ = hand.lowered(form)
        assert ops(model) == ["MatMul"]
        assert "w" in model.graph.initializers


def test_rounding_does_not_touch_the_graph() -> None:
    hand = Hand(linear(), {"Y": ("matmul-token", "u8kd,s8c@1->-")})
    state = hand.state(Form.ORT)
    assert not QuantizeWeights().run(hand.model, state).modified
    assert set(state.weights or {}) == {("Y", 1)}


def test_the_run_time_quantized_qdq_form_stays_on_integers(tmp_path) -> None:
    model = open_text(
        f"""{HEAD} g (float[2,3,32] x) => (float[2,3,6] z)
        {{ y = MatMul(x, w) z = Add(y, b) }}""",
        {"w": image(32, 6), "b": image(6)},
    )
    hand = Hand(model, {"Y": ("matmul-dynamic", "u8tzd,s8c@1->-")}, fused={"Z": "Y"})
    portable, settings = hand.lowered(Form.QDQ)
    path = tmp_path / "optimized.onnx"
    open_session(portable, settings=settings, optimized_path=path)
    seen = [node.op_type for node in onnx.load(path).graph.node]
    assert "DynamicQuantizeMatMul" in seen
    assert "MatMulNBits" not in seen
    feed = {"x": image(2, 3, 32)}
    expected, found = run_ort(hand.dialect(), feed)[0], run_ort(portable, feed, settings)[0]
    assert np.abs(expected - found).max() < 1e-5


@pytest.mark.parametrize("weight", ["s8c@1", "s8t"])
def test_static_matmuls_of_the_qdq_form_run_on_integers(weight: str, tmp_path) -> None:
    model = open_text(
        f"""{HEAD} g (float[2,3,32] x) => (float[2,3,6] z)
        {{ y = MatMul(x, w) z = Add(y, b) }}""",
        {"w": image(32, 6), "b": image(6)},
    )
    kernels = {"Y": ("matmul-static", f"u8tz,{weight}->-")}
    hand = Hand(model, kernels, {"x": "u8tz"}, {"x": (-3, 3)}, {"Z": "Y"})
    portable, settings = hand.lowered(Form.QDQ)
    path = tmp_path / "optimized.onnx"
    open_session(portable, settings=settings, optimized_path=path)
    seen = [node.op_type for node in onnx.load(path).graph.node]
    assert "QGemm" in seen
    assert "MatMul" not in seen


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_signed_activations_load_where_the_runtime_would_make_them_unsigned(runtime: str) -> None:
    model = open_text(
        f"""{HEAD} g (float[2,3,32] x) => (float[2,3,6] z)
        {{ y = MatMul(x, w) z = Add(y, b) }}""",
        {"w": image(32, 6), "b": image(6)},
    )
    kernels = {"Y": ("matmul-static", "s8t,s8c@1->-")}
    hand = Hand(model, kernels, {"x": "s8t"}, {"x": (-3, 3)}, runtime=runtime)
    portable, settings = hand.lowered(Form.QDQ)
    feed = {"x": image(2, 3, 32)}
    expected, found = run_ort(hand.dialect(), feed)[0], run_ort(portable, feed, settings)[0]
    assert np.abs(expected - found).max() < 1e-2


@pytest.mark.parametrize("spec", ["u4g16@0z", "u4g16@0f", "nf4g16@0/u8g4@0z"])
def test_weights_that_do_not_fit_into_memory_go_to_files(spec: str) -> None:
    plans = Hand(linear(), {"Y": ("matmul-weight", f"-,{spec}->-")})
    held, filed = plans.state(Form.ORT), plans.state(Form.ORT)
    QuantizeWeights().run(plans.model.clone(), held)
    QuantizeWeights(memory=0).run(plans.model.clone(), filed)
    (one,), (other,) = held.weights.values(), filed.weights.values()  # type: ignore[union-attr]
    assert np.array_equal(one.dequantize(), other.dequantize())
    assert one.spec == other.spec

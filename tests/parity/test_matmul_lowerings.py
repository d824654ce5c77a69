"""The native MatMul kernels compute what the QDQ dialect computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import Form, Hand, open_text, ops, run_ort, run_reference
from qcompiler.numerics.error import cosine

# Both sides multiply the same integers. The dialect sums K float32 products of dequantized
# numbers, the kernel sums integers exactly and scales once: they differ by float32 rounding of a
# sum, below 1e-5 of the largest output for the K used here.
ROUNDING = 1e-5

SHAPES = [
    ((3, 5, 19), 7),
    ((4, 32), 16),
    ((2, 3, 4, 33), 5),
    ((1, 64), 1),
    ((2, 1, 1), 3),
    ((1, 1, 257), 130),
]


def linear(shape: tuple[int, ...], n: int, *, bias: bool = True, seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    k, dims = shape[-1], ",".join(map(str, shape[:-1]))
    body = "y = MatMul(x, w) z = Add(y, b)" if bias else "z = MatMul(x, w)"
    constants = {"w": (rng.standard_normal((k, n)) * rng.uniform(0.1, 2, n)).astype(np.float32)}
    if bias:
        constants["b"] = rng.standard_normal(n).astype(np.float32)
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float[{dims},{k}] x) => (float[{dims},{n}] z) {{ {body} }}"""
    return open_text(text, constants)


def activations(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    return x * np.exp(rng.standard_normal((*shape[:-1], 1))).astype(np.float32)


def planned(kind: str, model: ir.Model, *, weight: str = "s8c@1") -> Hand:
    node = next(node for node in model.graph if node.op_type == "MatMul").name
    add = next((n.name for n in model.graph if n.op_type == "Add"), None)
    fused = {add: node} if add else {}
    if kind == "static":
        specs, values = f"u8tz,{weight}->-", {"x": "u8tz"}
        return Hand(model, {node: ("matmul-static", specs)}, values, {"x": (-3.0, 4.0)}, fused)
    if kind == "dynamic":
        return Hand(model, {node: ("matmul-dynamic", f"u8tzd,{weight}->-")}, fused=fused)
    return Hand(model, {node: ("matmul-token", f"u8kd,{weight}->-")})


def close(a: np.ndarray, b: np.ndarray, tolerance: float = ROUNDING) -> bool:
    assert a.shape == b.shape
    return bool(np.abs(a - b).max() <= tolerance * max(1.0, float(np.abs(a).max())))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["static", "dynamic", "token"])
@pytest.mark.parametrize(("shape", "n"), SHAPES)
def test_native_matmul_equals_the_dialect(
    kind: str, shape: tuple[int, ...], n: int, bias: bool
) -> None:
    hand = planned(kind, linear(shape, n, bias=bias))
    feed = {"x": activations(shape)}
    native, settings = hand.lowered()
    dialect = hand.dialect()
    (expected,) = run_ort(dialect, feed)
    (found,) = run_ort(native, feed, settings)
    assert close(expected, found)
    assert close(run_reference(dialect, feed)[0], expected)


@pytest.mark.parametrize("weight", ["s8c@1", "s8t", "u8c@1z", "s8r7c@1", "s8c@1z"])
@pytest.mark.parametrize("kind", ["static", "dynamic", "token"])
def test_every_weight_spec_of_a_matmul_lowers(kind: str, weight: str) -> None:
    hand = planned(kind, linear((6, 40), 9), weight=weight)
    feed = {"x": activations((6, 40))}
    native, settings = hand.lowered()
    assert close(run_ort(hand.dialect(), feed)[0], run_ort(native, feed, settings)[0])


def test_static_bias_is_inside_and_token_bias_outside() -> None:
    static, _ = planned("static", linear((4, 8), 3)).lowered()
    token, _ = planned("token", linear((4, 8), 3)).lowered()
    assert ops(static) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert ops(token)[-2:] == ["MatMulIntegerToFloat", "Add"]


def test_a_token_plan_that_fuses_the_bias_still_adds_it_outside() -> None:
    model = linear((4, 8), 3)
    hand = Hand(model, {"Y": ("matmul-token", "u8kd,s8c@1->-")}, fused={"Z": "Y"})
    feed = {"x": activations((4, 8))}
    native, settings = hand.lowered()
    assert ops(native)[-1] == "Add"
    assert close(run_ort(hand.dialect(), feed)[0], run_ort(native, feed, settings)[0])


def test_the_lowered_node_keeps_its_name_and_the_output_its_name() -> None:
    for kind in ("static", "dynamic", "token"):
        native, _ = planned(kind, linear((4, 8), 3)).lowered()
        assert "Y" in [node.name for node in native.graph]
        assert [value.name for value in native.graph.outputs] == ["z"]


def test_a_row_of_zeros_stays_zero_by_token() -> None:
    hand = planned("token", linear((3, 16), 4, bias=False))
    x = activations((3, 16))
    x[1] = 0.0
    native, settings = hand.lowered()
    (found,) = run_ort(native, {"x": x}, settings)
    assert np.array_equal(found[1], np.zeros(4, np.float32))
    assert np.isfinite(found).all()


def test_one_quantize_serves_three_consumers() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((16, 8)).astype(np.float32) for name in "uvw"}
    model = open_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[5,16] x) => (float[5,8] a,
        float[5,8] b, float[5,8] c) { a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) }""",
        weights,
    )
    static = dict.fromkeys("ABC", ("matmul-static", "u8tz,s8c@1->-"))
    token = dict.fromkeys("ABC", ("matmul-token", "u8kd,s8c@1->-"))
    feed = {"x": activations((5, 16))}
    for kernels in (static, token):
        hand = Hand(model, kernels, {"x": "u8tz"}, {"x": (-3, 3)})
        native, settings = hand.lowered()
        assert ops(native).count("QuantizeLinear") == 1
        for one, other in zip(
            run_ort(hand.dialect(), feed), run_ort(native, feed, settings), strict=True
        ):
            assert close(one, other)


def test_a_tied_weight_is_stored_once() -> None:
    model = open_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[5,16] x, float[5,16] y) =>
        (float[5,8] a, float[5,8] b) { a = MatMul(x, w) b = MatMul(y, w) }""",
        {"w": activations((16, 8))},
    )
    hand = Hand(model, dict.fromkeys("AB", ("matmul-token", "u8kd,s8c@1->-")))
    native, _ = hand.lowered()
    integers = [v for v in native.graph.initializers.values() if v.dtype is ir.DataType.INT8]
    assert [tuple(value.shape) for value in integers] == [(16, 8)]
    assert "w" not in native.graph.initializers


def test_static_matmul_with_stored_output_is_a_qlinear_matmul() -> None:
    model = linear((7, 24), 10, bias=False)
    hand = Hand(
        model,
        {"Z": ("matmul-static-u8", "u8tz,s8c@1->u8tz")},
        {"x": "u8tz", "z": "u8tz"},
        {"x": (-3, 3), "z": (-12, 9)},
    )
    native, settings = hand.lowered()
    assert ops(native) == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    feed = {"x": activations((7, 24))}
    one_step = 21 / 255  # sums that fall on a rounding boundary may land on either side
    expected, found = run_ort(hand.dialect(), feed)[0], run_ort(native, feed, settings)[0]
    assert np.abs(expected - found).max() <= 1.01 * one_step
    assert np.mean(expected != found) < 0.02


def test_half_precision_goes_through_casts() -> None:
    model = open_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float16[4,16] x) => (float16[4,8] z)
        { y = MatMul(x, w) z = Add(y, b) }""",
        {"w": activations((16, 8)).astype(np.float16), "b": activations((8,)).astype(np.float16)},
    )
    for name in ("y", "z"):
        value = next(v for node in model.graph for v in node.outputs if v.name == name)
        value.dtype = ir.DataType.FLOAT16
    feed = {"x": activations((4, 16)).astype(np.float16)}
    half = 2e-3  # float16 has 11 bits
    for kind in ("static", "token", "dynamic"):
        hand = planned(kind, model)
        native, settings = hand.lowered()
        expected, found = run_ort(hand.dialect(), feed)[0], run_ort(native, feed, settings)[0]
        assert found.dtype == np.float16
        assert close(expected.astype(np.float32), found.astype(np.float32), half)


def test_static_qdq_form_runs_on_integers_and_agrees() -> None:
    hand = planned("static", linear((6, 40), 24))
    feed = {"x": activations((6, 40))}
    portable, settings = hand.lowered(Form.QDQ)
    assert "DequantizeLinear" in ops(portable)
    assert {node.domain for node in portable.graph} == {""}
    expected, found = run_ort(hand.dialect(), feed)[0], run_ort(portable, feed, settings)[0]
    # the int32 bias is half a step of x_scale * w_scale off at most
    assert close(expected, found, 1e-3)
    assert cosine(expected, found) > 0.999999

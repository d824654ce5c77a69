"""QLinear kernels and integer carriers give the integers that the QDQ dialect stores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import Form, Hand, fixed, open_text, ops, run_ort

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
# Kernels requantize an integer sum with one float32 factor, the dialect divides a float32 sum by
# the output's scale: a value that falls on a rounding boundary may land on either side of it.
RARE = 0.01


def agree(hand: Hand, feed: dict[str, np.ndarray], step: float, *, rare: float = RARE) -> ir.Model:
    """Both forms give the dialect's output, but for rare single steps; returns the native graph."""
    (expected,) = run_ort(hand.dialect(), feed)
    native, settings = hand.lowered()
    portable, portable_settings = hand.lowered(Form.QDQ)
    for model, options in ((native, settings), (portable, portable_settings)):
        (found,) = run_ort(model, feed, options)
        difference = np.abs(expected - found)
        assert difference.max() <= 1.01 * step
        assert np.mean(difference > 0.01 * step) <= rare
    return native


def image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONVS = [
    ("kernel_shape = [3,3], pads = [1,1,1,1]", (2, 8, 9, 7), (5, 8, 3, 3)),
    ("kernel_shape = [3,3], strides = [2,2], dilations = [2,2]", (1, 4, 15, 15), (1, 4, 3, 3)),
    ("kernel_shape = [1,1]", (1, 16, 5, 5), (33, 16, 1, 1)),
    ("kernel_shape = [5,5], group = 6, pads = [2,2,2,2]", (1, 6, 8, 8), (6, 1, 5, 5)),
    (
        'kernel_shape = [3,3], auto_pad = "SAME_UPPER", strides = [2,2]',
        (1, 3, 10, 10),
        (8, 3, 3, 3),
    ),
    ("kernel_shape = [1,1]", (1, 2, 5, 5), (8, 2, 1, 1)),
    ("kernel_shape = [3], pads = [1,1]", (2, 4, 11), (6, 4, 3)),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("attributes", "x_shape", "w_shape"), CONVS)
def test_convolution(
    attributes: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], bias: bool
) -> None:
    constants = {"w": image(*w_shape, seed=1) * 0.3}
    if bias:
        constants["b"] = image(w_shape[0], seed=2)
    dims = ",".join(map(str, x_shape))
    out = ",".join("abcd"[: len(x_shape)])
    model = open_text(
        f"""{HEAD} g (float[{dims}] x) => (float[{out}] y)
        {{ y = Conv<{attributes}>(x, w{", b" if bias else ""}) }}""",
        constants,
    )
    hand = Hand(
        model,
        {"Y": ("conv-static", "u8tz,s8c@0->u8tz")},
        {"x": "u8tz", "y": "u8tz"},
        {"x": (-3, 3), "y": (-6, 7)},
    )
    native = agree(hand, {"x": image(*x_shape)}, 13 / 255)
    pad = ["Pad"] if w_shape[1] == 3 else []  # images get a fourth channel
    assert ops(native) == ["QuantizeLinear", *pad, "QLinearConv", "DequantizeLinear"]


@pytest.mark.parametrize("spec", ["s8t", "s8c@0", "u8c@0z", "s8r7c@0"])
def test_convolution_weight_specs(spec: str) -> None:
    model = open_text(
        f"""{HEAD} g (float[1,4,6,6] x) => (float[a,b,c,d] y)
        {{ y = Conv<kernel_shape = [3,3]>(x, w, b) }}""",
        {"w": image(5, 4, 3, 3, seed=1), "b": image(5, seed=2)},
    )
    hand = Hand(
        model,
        {"Y": ("conv-static", f"u8tz,{spec}->u8tz")},
        {"x": "u8tz", "y": "u8tz"},
        {"x": (-3, 3), "y": (-15, 15)},
    )
    agree(hand, {"x": image(1, 4, 6, 6)}, 30 / 255)


@pytest.mark.parametrize(
    ("clamp", "range_", "left"),
    [
        ("Relu(c)", (0.0, 8.0), []),  # Q saturates at 0 by itself
        ("Relu(c)", (-2.0, 8.0), ["Clip"]),  # it does not: integers are clamped
        ("Clip(c, zero, six)", (0.0, 6.0), []),
        ("Clip(c, zero, six)", (0.0, 5.2), []),
        ("Clip(c, zero, six)", (0.0, 7.0), ["Clip"]),
    ],
)
def test_a_clamp_is_dropped_only_when_quantizing_implies_it(
    clamp: str, range_: tuple[float, float], left: list[str]
) -> None:
    constants = {"w": image(8, 4, 3, 3, seed=1), "b": image(8, seed=2)}
    if "zero" in clamp:
        constants |= {"zero": np.zeros((), np.float32), "six": np.full((), 6, np.float32)}
    model = open_text(
        f"""{HEAD} g (float[1,4,9,9] x) => (float[a,b,c,d] y)
        {{ c = Conv<kernel_shape = [3,3]>(x, w, b) y = {clamp} }}""",
        constants,
    )
    hand = Hand(
        model,
        {"C": ("conv-static", "u8tz,s8c@0->u8tz")},
        {"x": "u8tz", "y": "u8tz"},
        {"x": (-3, 3), "y": range_},
        {"Y": "C"},
    )
    native = agree(hand, {"x": image(1, 4, 9, 9)}, (range_[1] - range_[0]) / 255)
    assert ops(native) == ["QuantizeLinear", "QLinearConv", *left, "DequantizeLinear"]
    assert "C" in [node.name for node in native.graph]


def binary(op: str, *, relu: bool = False) -> ir.Model:
    tail = "y = Relu(s)" if relu else ""
    result = "s" if relu else "y"
    return open_text(
        f"{HEAD} g (float[2,3,4,5] a, float[2,3,4,5] b) => (float[2,3,4,5] y)"
        f"{{ {result} = {op}(a, b) {tail} }}",
        {},
    )


@pytest.mark.parametrize(("op", "kernel"), [("Add", "add-static"), ("Mul", "mul-static")])
def test_binary_operators(op: str, kernel: str) -> None:
    hand = Hand(
        binary(op),
        {"Y": (kernel, "u8tz,u8tz->u8tz")},
        {"a": "u8tz", "b": "u8tz", "y": "u8tz"},
        {"a": (-3, 3), "b": (-1, 2), "y": (-4, 5)},
    )
    feed = {"a": image(2, 3, 4, 5), "b": image(2, 3, 4, 5, seed=1)}
    assert f"QLinear{op}" in ops(agree(hand, feed, 9 / 255, rare=0.03))


def test_relu_behind_an_add() -> None:
    hand = Hand(
        binary("Add", relu=True),
        {"S": ("add-static", "u8tz,u8tz->u8tz")},
        {"a": "u8tz", "b": "u8tz", "y": "u8tz"},
        {"a": (-3, 3), "b": (-1, 2), "y": (0, 5)},
        {"Y": "S"},
    )
    feed = {"a": image(2, 3, 4, 5), "b": image(2, 3, 4, 5, seed=1)}
    assert "Relu" not in ops(agree(hand, feed, 5 / 255, rare=0.03))


def test_a_constant_operand_is_rounded_as_a_weight() -> None:
    model = open_text(
        f"{HEAD} g (float[2,3,4,5] a) => (float[2,3,4,5] y) {{ y = Add(a, b) }}",
        {"b": image(3, 1, 1, seed=1)},
    )
    hand = Hand(
        model,
        {"Y": ("add-static", "u8tz,u8tz->u8tz")},
        {"a": "u8tz", "y": "u8tz"},
        {"a": (-3, 3), "y": (-4, 5)},
    )
    agree(hand, {"a": image(2, 3, 4, 5)}, 9 / 255, rare=0.03)


@pytest.mark.parametrize(
    ("expression", "kernel", "out", "runtime_op"),
    [
        ("Sigmoid(x)", "sigmoid-static", (0.0, 1.0), "QLinearSigmoid"),
        ("LeakyRelu<alpha = 0.1>(x)", "leaky-relu-static", (-0.3, 3.0), "QLinearLeakyRelu"),
        (
            "AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]>(x)",
            "average-pool-static",
            (-1.93, 2.17),
            "QLinearAveragePool",
        ),
        (
            "AveragePool<kernel_shape = [2,2], count_include_pad = 1>(x)",
            "average-pool-static",
            (-1.93, 2.17),
            "QLinearAveragePool",
        ),
        ("GlobalAveragePool(x)", "global-average-pool-static", (-1, 1), "QLinearGlobalAveragePool"),
    ],
)
def test_unary_operators(
    expression: str, kernel: str, out: tuple[float, float], runtime_op: str
) -> None:
    model = open_text(
        f"{HEAD} g (float[2,3,8,9] x) => (float[a,b,c,d] y) {{ y = {expression} }}", {}
    )
    hand = Hand(
        model,
        {"Y": (kernel, "u8tz->u8tz")},
        {"x": "u8tz", "y": fixed("u8tz", *out)},
        {"x": (-3, 3)},
    )
    native = agree(hand, {"x": image(2, 3, 8, 9)}, (out[1] - out[0]) / 255, rare=0.05)
    assert runtime_op in ops(native)


def test_concat_of_operands_with_their_own_parameters() -> None:
    model = open_text(
        f"""{HEAD} g (float[2,3,4] a, float[2,5,4] b) => (float[2,8,4] y)
        {{ y = Concat<axis = 1>(a, b) }}""",
        {},
    )
    hand = Hand(
        model,
        {"Y": ("concat-static", "u8tz,u8tz->u8tz")},
        {"a": "u8tz", "b": "u8tz", "y": "u8tz"},
        {"a": (-3, 3), "b": (0, 2), "y": (-3, 3)},
    )
    native = agree(hand, {"a": image(2, 3, 4), "b": image(2, 5, 4, seed=1)}, 6 / 255, rare=0.05)
    assert "QLinearConcat" in ops(native)


CARRIERS = [
    "Reshape(x, shape)",
    "Transpose<perm = [0,2,3,1]>(x)",
    "MaxPool<kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]>(x)",
    "Slice(x, starts, ends, axes)",
    "Flatten(x)",
    "Pad(x, pads)",
    'Pad<mode = "reflect">(x, pads)',
    "Relu(x)",
]


@pytest.mark.parametrize("expression", CARRIERS)
def test_carriers_run_on_the_integers_exactly(expression: str) -> None:
    numbers = {
        "shape": [2, 4, -1],
        "starts": [1],
        "ends": [3],
        "axes": [1],
        "pads": [0, 0, 1, 1, 0, 0, 1, 2],
    }
    constants = {
        name: np.array(value, np.int64)
        for name, value in numbers.items()
        if f", {name}" in expression.split(">(")[-1]
    }
    model = open_text(f"{HEAD} g (float[2,4,6,6] x) => (float y) {{ y = {expression} }}", constants)
    model.graph.outputs[0].shape = None
    from qcompiler.plan import Same

    hand = Hand(model, {}, {"x": "u8tz", "y": Same("x")}, {"x": (-2.5, 3)}, carried=["Y"])
    native = agree(hand, {"x": image(2, 4, 6, 6)}, 1e-6, rare=0.0)
    assert ops(native)[0] == "QuantizeLinear"
    assert ops(native)[-1] == "DequantizeLinear"
    assert len(native.graph) == 3


@pytest.mark.parametrize("spec", ["s8c@0", "s8t"])
def test_a_table_is_gathered_as_integers(spec: str) -> None:
    model = open_text(
        f"{HEAD} g (int64[2,7] ids) => (float[2,7,24] y) {{ y = Gather(table, ids) }}",
        {"table": image(50, 24) * np.exp(image(50, 1, seed=3))},
    )
    hand = Hand(model, {"Y": ("gather-weight", f"{spec},-->-")})
    ids = np.random.default_rng(0).integers(0, 50, (2, 7))
    native, settings = hand.lowered()
    (found,) = run_ort(native, {"ids": ids}, settings)
    from qcompiler.algorithms.rtn import round_to_nearest
    from qcompiler.schemes import QSpec

    table = round_to_nearest(image(50, 24) * np.exp(image(50, 1, seed=3)), QSpec.parse(spec))
    assert np.array_equal(found, table.dequantize()[ids])
    assert "DequantizeLinear" not in ops(native)
    assert [value.name for value in native.graph.outputs] == ["y"]


def test_a_chain_has_one_quantize_and_one_dequantize() -> None:
    model = open_text(
        f"""{HEAD} g (float[1,4,12,12] x) => (float[a,b,c,d] y) {{
        c = Conv<kernel_shape = [3,3]>(x, w, b) r = Relu(c) p = MaxPool<kernel_shape = [2,2]>(r)
        y = Conv<kernel_shape = [1,1]>(p, v) }}""",
        {"w": image(8, 4, 3, 3, seed=1), "b": image(8), "v": image(4, 8, 1, 1, seed=2)},
    )
    from qcompiler.plan import Same

    hand = Hand(
        model,
        dict.fromkeys("CY", ("conv-static", "u8tz,s8c@0->u8tz")),
        {"x": "u8tz", "r": "u8tz", "p": Same("r"), "y": "u8tz"},
        {"x": (-3, 3), "r": (0, 12), "y": (-30, 30)},
        {"R": "C"},
        carried=["P"],
    )
    native = agree(hand, {"x": image(1, 4, 12, 12)}, 60 / 255, rare=0.05)
    assert ops(native) == [
        "QuantizeLinear", "QLinearConv", "MaxPool", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip


def test_a_float_reader_of_a_stored_value_gets_it_dequantized() -> None:
    model = open_text(
        f"""{HEAD} g (float[1,4,6,6] x) => (float[a,b,c,d] y, float[a,b,c,d] t) {{
        y = Conv<kernel_shape = [1,1]>(x, w) t = Tanh(y) }}""",
        {"w": image(3, 4, 1, 1, seed=1)},
    )
    hand = Hand(
        model,
        {"Y": ("conv-static", "u8tz,s8c@0->u8tz")},
        {"x": "u8tz", "y": "u8tz"},
        {"x": (-3, 3), "y": (-6, 7)},
    )
    native, settings = hand.lowered()
    feed = {"x": image(1, 4, 6, 6)}
    y, t = run_ort(native, feed, settings)
    assert [value.name for value in native.graph.outputs] == ["y", "t"]
    assert np.allclose(np.tanh(y), t, rtol=0, atol=1e-6)


def test_a_bias_behind_a_dead_channel_survives() -> None:
    w = image(3, 4, 1, 1, seed=1)
    w[1] = 0.0
    w[2] *= 1e-12  # what a folded batch norm with a tiny gain leaves
    model = open_text(
        f"""{HEAD} g (float[1,4,6,6] x) => (float[a,b,c,d] y)
        {{ y = Conv<kernel_shape = [1,1]>(x, w, b) }}""",
        {"w": w, "b": np.array([0.5, 1.5, -2.0], np.float32)},
    )
    hand = Hand(
        model,
        {"Y": ("conv-static", "u8tz,s8c@0->u8tz")},
        {"x": "u8tz", "y": "u8tz"},
        {"x": (-3, 3), "y": (-6, 6)},
    )
    feed = {"x": image(1, 4, 6, 6)}
    native = agree(hand, feed, 12 / 255)
    (found,) = run_ort(native, feed, hand.lowered()[1])
    assert np.abs(found[0, 1] - 1.5).max() <= 6 / 255
    assert np.abs(found[0, 2] + 2.0).max() <= 6 / 255


def test_half_precision_convolution() -> None:
    model = open_text(
        f"""{HEAD} g (float16[1,4,6,6] x) => (float16[a,b,c,d] t) {{
        c = Conv<kernel_shape = [1,1]>(x, w, b) r = Relu(c) t = Tanh(r) }}""",
        {"w": image(3, 4, 1, 1).astype(np.float16), "b": image(3).astype(np.float16)},
    )
    for node in model.graph:
        node.outputs[0].dtype = ir.DataType.FLOAT16
    hand = Hand(
        model,
        {"C": ("conv-static", "u8tz,s8c@0->u8tz")},
        {"x": "u8tz", "r": "u8tz"},
        {"x": (-3, 3), "r": (0, 7)},
        {"R": "C"},
    )
    agree(hand, {"x": image(1, 4, 6, 6).astype(np.float16)}, 7 / 255, rare=0.02)

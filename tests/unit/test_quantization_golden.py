"""What insert-qdq, to-ort and finish-qdq write, as text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from by_hand import Form, Hand, open_text
from qcompiler.ir.text import model_text
from qcompiler.plan import Same

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
Golden = Callable[[str, str], None]


def numbers(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7 - 3) / 4


def linear(kernel: str, specs: str, *, runtime: str = "onnxruntime") -> Hand:
    model = open_text(
        f"{HEAD} g (float[2,4] x) => (float[2,2] z) {{ y = MatMul(x, w) z = Add(y, b) }}",
        {"w": numbers(4, 2), "b": np.array([0.5, -1.0], np.float32)},
    )
    fused = {} if kernel == "matmul-token" else {"Z": "Y"}
    return Hand(model, {"Y": (kernel, specs)}, {"x": "u8tz"}, {"x": (-1, 1)}, fused, (), runtime)


def network(activation: str = "u8tz", runtime: str = "onnxruntime") -> Hand:
    model = open_text(
        f"""{HEAD} g (float[1,2,4,4] x) => (float[1,2,1,1] y) {{
        c = Conv<kernel_shape = [3,3]>(x, w, b) r = Relu(c)
        p = MaxPool<kernel_shape = [2,2]>(r) y = Conv<kernel_shape = [1,1]>(p, v) }}""",
        {
            "w": numbers(2, 2, 3, 3),
            "b": np.array([0.5, -1.0], np.float32),
            "v": numbers(2, 2, 1, 1),
        },
    )
    return Hand(
        model,
        dict.fromkeys("CY", ("conv-static", f"{activation},s8c@0->{activation}")),
        {"x": activation, "r": activation, "p": Same("r"), "y": activation},
        {"x": (-1, 1), "r": (0, 4), "y": (-2, 2)},
        {"R": "C"},
        ["P"],
        runtime,
    )


LINEARS = [
    ("matmul-static", "u8tz,s8c@1->-"),
    ("matmul-dynamic", "u8tzd,s8c@1->-"),
    ("matmul-token", "u8kd,s8c@1->-"),
    ("matmul-weight", "-,u4g16@0->-"),
]


@pytest.mark.parametrize(("kernel", "specs"), LINEARS)
def test_a_linear_layer_in_three_forms(kernel: str, specs: str, golden: Golden) -> None:
    hand = linear(kernel, specs)
    text = model_text(hand.model) + "--- insert-qdq ---\n" + model_text(hand.dialect())
    text += "--- to-ort ---\n" + model_text(hand.lowered()[0])
    text += "--- finish-qdq ---\n" + model_text(hand.lowered(Form.QDQ)[0])
    golden(f"quantization/{kernel}", text)


def test_a_small_convolution_network(golden: Golden) -> None:
    hand = network()
    text = model_text(hand.model) + "--- insert-qdq ---\n" + model_text(hand.dialect())
    text += "--- to-ort ---\n" + model_text(hand.lowered()[0])
    golden("quantization/conv-network", text)


def test_tensorrt_gets_symmetric_activations_and_a_float_bias(golden: Golden) -> None:
    portable, _ = network("s8t", "tensorrt").lowered(Form.QDQ)
    golden("quantization/conv-network-tensorrt", model_text(portable))


def test_a_table(golden: Golden) -> None:
    model = open_text(
        f"{HEAD} g (int64[3] ids) => (float[3,2] y) {{ y = Gather(table, ids) }}",
        {"table": numbers(4, 2)},
    )
    hand = Hand(model, {"Y": ("gather-weight", "s8c@0,-->-")})
    golden("quantization/gather-weight", model_text(hand.lowered()[0]))

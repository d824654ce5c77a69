"""QOperator -> QDQ -> plan -> kernels, as texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.frontends import open_model
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.lower.to_ort import ToOrt
from qcompiler_passes.quantized.adopt_quantized import AdoptQuantized
from qcompiler_passes.quantized.import_quantized import ImportQuantized

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
SCALE, ZERO = np.array(0.05, np.float32), np.array(120, np.uint8)


def _weight(*shape: int) -> np.ndarray:
    count = int(np.prod(shape))
    return ((np.arange(count) * 37) % 255 - 127).reshape(shape).astype(np.int8)


_STATIC = {"s": SCALE, "z": ZERO, "s2": np.array(0.1, np.float32), "z2": np.array(7, np.uint8)}
CASES: Mapping[str, tuple[str, str, Mapping[str, np.ndarray]]] = {
    "qlinear-matmul": (
        "(float[2,4] x) => (float[2,3] y)",
        (
            "q = QuantizeLinear(x, s, z)  p = QLinearMatMul(q, s, z, w, ws, wz, s2, z2)"
            "  y = DequantizeLinear(p, s2, z2)"
        ),
        {
            **_STATIC,
            "w": _weight(4, 3),
            "ws": np.array([0.1, 0.2, 0.3], np.float32),
            "wz": np.zeros(3, np.int8),
        },
    ),
    "qlinear-conv-pool": (
        "(float[1,2,4,4] x) => (float[1,3,1,1] y)",
        (
            "q = QuantizeLinear(x, s, z)  c = QLinearConv(q, s, z, w, ws, wz, s2, z2, b)"
            "  m = MaxPool<kernel_shape=[3,3]>(c)  y = DequantizeLinear(m, s2, z2)"
        ),
        {
            **_STATIC,
            "w": _weight(3, 2, 2, 2),
            "ws": np.array([0.1, 0.2, 0.3], np.float32),
            "wz": np.zeros(3, np.int8),
            "b": np.array([5, -6, 7], np.int32),
        },
    ),
    "qgemm": (
        "(float[2,4] x) => (float[2,3] y)",
        "q = QuantizeLinear(x, s, z)  y = com.microsoft.QGemm<transB=1>(q, s, z, w, ws, wz, b)",
        {
            **_STATIC,
            "w": _weight(3, 4),
            "ws": np.array([0.1, 0.2, 0.3], np.float32),
            "wz": np.zeros(3, np.int8),
            "b": np.array([5, -6, 7], np.int32),
        },
    ),
    "matmul-integer": (
        "(float[2,4] x) => (float[2,3] y)",
        (
            "q, s, z = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, z, wz)  f = Cast<to=1>(i)"
            "  ss = Mul(s, ws)  m = Mul(f, ss)  y = Add(m, b)"
        ),
        {
            "w": _weight(4, 3),
            "ws": np.array([0.1], np.float32),
            "wz": np.array([0], np.int8),
            "b": np.array([0.5, 1.5, 2.5], np.float32),
        },
    ),
    "matmul-nbits": (
        "(float[2,16] x) => (float[2,2] y)",
        "y = com.microsoft.MatMulNBits<K=16, N=2, bits=4, block_size=16>(x, w, ws, wz)",
        {
            "w": np.arange(16, dtype=np.uint8).reshape(2, 1, 8) * 9,
            "ws": np.array([0.1, 0.2], np.float32),
            "wz": np.array([8, 7], np.uint8),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_are_spelled_out_adopted_and_lowered(
    case: str, golden: Callable[[str, str], None]
) -> None:
    io, body, constants = CASES[case]
    lines = body.replace("  ", "\n")
    model = ir.from_onnx_text(f"{HEAD} g {io} {{\n{lines}\n}}")
    uses = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in constants.items():
        if name not in uses:
            continue
        value = uses[name]
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
        model.graph.initializers[name] = value
    model = open_model(model).model
    state = State(load_target("cpu-vnni"), Recipe.of(None), Form.ORT)
    texts = [model_text(model)]
    for item in (ImportQuantized(), ObserveShapes(), AdoptQuantized(), ToOrt()):
        run_pipeline([item], model, state, check=True)
        if item.name != "observe-shapes":
            texts.append(f"--- {item.name} ---\n{model_text(model)}")
        if item.name == "adopt-quantized":
            texts.append(str(state.plan) + "\n")
    golden(f"quantized/{case}", "\n".join(texts))

"""Operators that the reference lacks give their formula, and no operator goes unchecked."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from onnx import helper

from lifted_case import ATOL, RTOL, Array, torch
from qcompiler.lift import OPERATORS, lift


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def norm(x: Array, epsilon: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: Array) -> Array:
    return np.float32(0.5) * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


BY_FORMULA: dict[tuple[str, str], tuple[int, dict[str, Any], Callable[..., Array]]] = {
    ("", "Swish"): (1, {"alpha": 0.7}, lambda x: x * sigmoid(0.7 * x)),
    ("", "SimplifiedLayerNormalization"): (
        2, {"epsilon": 1e-5}, lambda x, w: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w,
    ),
    ("com.microsoft", "Gelu"): (1, {}, erf_gelu),
    ("com.microsoft", "FastGelu"): (2, {}, lambda x, b: tanh_gelu(x + b)),
    ("com.microsoft", "BiasGelu"): (2, {}, lambda x, b: erf_gelu(x + b)),
    ("com.microsoft", "QuickGelu"): (1, {"alpha": 1.7}, lambda x: x * sigmoid(1.7 * x)),
    ("com.microsoft", "FusedMatMul"): (2, {"alpha": 0.5, "transB": 1}, lambda a, b: 0.5 * a @ b.T),
    ("com.microsoft", "SkipLayerNormalization"): (
        5, {"epsilon": 1e-5}, lambda x, s, g, b, a: norm(x + s + a) * g + b,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_FORMULA, ids=":".join)
def test_by_formula(name: tuple[str, str]) -> None:
    count, attributes, formula = BY_FORMULA[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((4, 4) if i < 2 else 4).astype(np.float32) for i in range(count)]
    graph = helper.make_graph(
        [
            helper.make_node(
                name[1], [f"x{i}" for i in range(count)], ["y"], domain=name[0], **attributes
            )
        ],
        "g",
        [helper.make_tensor_value_info(f"x{i}", 1, a.shape) for i, a in enumerate(arrays)],
        [onnx.ValueInfoProto(name="y")],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    (found,) = lift(ir.from_proto(model).graph)(*[torch.from_numpy(a) for a in arrays])
    np.testing.assert_allclose(found.numpy(), formula(*arrays), rtol=RTOL, atol=ATOL)


def test_every_operator_is_compared() -> None:
    files = pathlib.Path(__file__).parent.glob("test_lifted_*.py")
    words = {word for path in files for word in re.findall(r"\w+", path.read_text("utf-8"))}
    words |= {f"Reduce{name}" for name in words}
    missing = {name for _, name, _ in OPERATORS} - words
    assert not missing  # Upsample has the function of Resize 10

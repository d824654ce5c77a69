"""Weight-only recipes and formats from model to file: what is saved runs, is small, and is told."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from by_hand import open_text
from qcompiler import qcompile
from qcompiler.artifact import Artifact
from qcompiler.diagnostics import Code
from qcompiler.runtime.session import open_session
from qcompiler.runtime.settings import SessionSettings

K, N = 96, 320
FEED = {"x": np.random.default_rng(1).standard_normal((5, K)).astype(np.float32)}


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    constants = {
        "a": rng.standard_t(5, (K, N)).astype(np.float32),
        "b": rng.standard_t(5, (N, K)).astype(np.float32) / 20,
    }
    path = tmp_path / "model.onnx"
    text = f"""<ir_version: 10, opset_import: ["" : 23]> g (float[m,{K}] x) => (float[m,{K}] y)
        {{ h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }}"""
    onnx.save(ir.to_proto(open_text(text, constants)), path)
    return path


def compiled(model: pathlib.Path, folder: pathlib.Path, recipe: dict) -> Artifact:
    options = {"verify": {"guard": False, "min_cosine": -1.0, "wrong_cosine": -1.0}}
    qcompile(model, target="cpu", recipe={**recipe, **options}, output=folder)
    return Artifact.load(folder)


@pytest.mark.parametrize("name", ["w4-rtn", "w4-k-quant", "w4-hqq"])
def test_the_recipes_named_for_algorithms(
    model: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    artifact = compiled(model, tmp_path / "out", {"base": name})
    found = artifact.session().run(None, FEED)[0]
    wanted = compiled(model, tmp_path / "float", {"base": "float"}).session().run(None, FEED)[0]
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
    assert {item.kernel for item in artifact.plan if item.kernel} == {"matmul-weight"}


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        ({"bits": 3, "group_size": 32}, 4.0),
        ({"bits": 1, "group_size": 32}, 2.0),
        ({"bits": 6, "group_size": -1}, 6.5),
        ({"bits": 4, "group_size": 20}, 5.6),
        ({"format": "nf4", "bits": 4, "group_size": 32, "double_quant": {}}, 4.4),
        ({"format": "fp4", "bits": 4, "group_size": 48}, 4.7),
    ],
)
def test_a_file_holds_as_many_bits_as_were_asked_for(
    model: pathlib.Path, tmp_path: pathlib.Path, weights: dict, bits: float
) -> None:
    artifact = compiled(model, tmp_path / "out", {"base": "w4-rtn", "weights": weights})
    stored = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    size = sum(len(item.raw_data) for item in stored)
    assert size * 8 <= 2 * K * N * bits + 4096
    assert np.isfinite(artifact.session().run(None, FEED)[0]).all()


def test_a_format_that_no_target_kernel_takes_is_told(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    recipe = {"base": "w4-rtn", "weights": {"format": "nf4"}}
    artifact = compiled(model, tmp_path / "out", recipe)
    assert Code.FLOAT_WEIGHTS in {item.code for item in artifact.report.diagnostics}


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_of_4_bits_that_the_runtime_casts_to_e4m3_without_error(
    model: pathlib.Path, symmetric: bool
) -> None:
    weights = {"group_size": 32, "symmetric": symmetric}
    recipe = {"base": "w4-gptq", "weights": weights, "gptq": {"fp8_scales": True}}
    recipe["verify"] = {"enabled": False}
    artifact = qcompile(model, "cpu", recipe, calibration=[FEED], form="qdq")
    assert Code.FP8_SCALES in {item.code for item in artifact.report.diagnostics}
    weights = [node for node in artifact.model.graph if node.op_type == "DequantizeLinear"]
    assert len(weights) == 2
    for node in weights:
        constants = {value.name: value.const_value.numpy() for value in node.inputs if value}
        scale = constants[node.inputs[1].name]
        factor = np.abs(scale).max(axis=0, keepdims=True) / np.float32(16)
        names = ", ".join(value.name.replace("/", "_") for value in node.inputs if value)
        text = f"""<ir_version: 10, opset_import: ["" : 23]> g () => (float[k,n] w, float[k,n] back)
            {{ w = DequantizeLinear <axis = 0, block_size = 32> ({names})
               unscaled = Div(w, factor)
               short = Cast <to = 17> (unscaled)
               long = Cast <to = 1> (short)
               back = Mul(long, factor) }}"""
        given = {value.name.replace("/", "_"): value.const_value for value in node.inputs if value}
        plain = open_text(text, {**given, "factor": factor})
        w, back = open_session(plain, settings=SessionSettings("disable")).run(None, {})
        np.testing.assert_array_equal(w, back)
        assert len(np.unique(w)) > 16


def test_float_zero_points_are_found_by_the_algorithm_that_is_asked(
    model: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = []
    for algorithm in ("rtn", "k-quant", "hqq"):
        recipe = {"base": "w4-hqq", "weights": {"algorithm": algorithm, "bits": 3}}
        artifact = compiled(model, tmp_path / algorithm, recipe)
        assert {str(item.inputs[1]) for item in artifact.plan if item.kernel} == {"u4r3g64@0f"}
        found.append(artifact.session().run(None, FEED)[0])
    wanted = compiled(model, tmp_path / "float", {"base": "float"}).session().run(None, FEED)[0]
    errors = [float(np.square(item - wanted).sum()) for item in found]
    assert len(set(errors)) == 3
    assert max(errors) < 0.5 * float(np.square(wanted).sum())

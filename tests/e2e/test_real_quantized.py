"""Real models quantized by ONNX Runtime's tool: lowered again, compared, end to end."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization.shape_inference import quant_pre_process

from qcompiler import qcompile
from qcompiler.frontends import open_model
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form
from qcompiler.verify.layers import compare_layers
from qcompiler_models import load_model
from quantized_by_others import integers, outputs, quantize, relower

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in cache:
            model = load_model(name)
            folder = tmp_path_factory.mktemp(name)
            path = folder / "prepared.onnx"
            quant_pre_process(str(model.onnx()), str(path), skip_symbolic_shape=True)
            cache[name] = (open_model(path).model, model.calibration(4), folder)
        return cache[name]

    return get


@pytest.mark.parametrize(
    ("name", "form", "kernel"),
    [
        ("efficientnet-lite0", "qdq", "QLinearConv"),
        ("efficientnet-lite0", "qoperator", "QLinearConv"),
        ("minilm", "qdq", "QLinearMatMul"),
        ("minilm", "qoperator", "QLinearMatMul"),
    ],
)
def test_integers_and_numbers_of_real_models_stay(
    name: str, form: str, kernel: str, prepared: Any
) -> None:
    source, feeds, folder = prepared(name)
    path = quantize(source, feeds, folder, form=form)
    model = open_model(path).model
    feed = {key: array[:2] for key, array in feeds[0].items()}
    want = outputs(model, feed)
    shipped = outputs(model, feed, SessionSettings())
    portable, _ = relower(model, feed, Form.QDQ)
    native, state = relower(model, feed)
    assert sum(node.op_type == kernel for node in native.graph) >= 30
    kept = integers(native)
    assert all(weight in kept for weight in integers(model))
    if form == "qdq":
        for x, y in zip(want, outputs(portable, feed), strict=True):
            assert np.array_equal(x, y)
    for x, y in zip(shipped, outputs(native, feed, state.session), strict=True):
        assert np.abs(x - y).max() <= 1e-4 * np.abs(x).max()


def test_a_shipped_file_compiles_from_its_path_alone(prepared: Any, tmp_path: pathlib.Path) -> None:
    source, feeds, folder = prepared("minilm")
    path = quantize(source, feeds, folder, form="dynamic")
    artifact = qcompile(path, calibration=feeds, output=tmp_path / "out")
    assert onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    if not any(item.code.id == "QC119" for item in artifact.report.diagnostics):
        assert artifact.report.kernels["planned"] == artifact.report.kernels["seen"] >= 30


def test_comparing_a_shipped_file_finds_its_worst_layer(prepared: Any) -> None:
    source, feeds, folder = prepared("efficientnet-lite0")
    path = quantize(source, feeds, folder)
    found = compare_layers(source, path, feeds, max_feeds=1)
    layers = [row for row in found.rows if row.op == "Conv"]
    assert len(layers) == 49
    assert found.unmatched == 0
    assert all(row.weight_share is not None for row in layers)
    assert found.first_jump is not None

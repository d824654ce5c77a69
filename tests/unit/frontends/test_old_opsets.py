"""Models of opsets older than 11: brought to 11 with the same outputs, or refused by name."""

from __future__ import annotations

import logging
import pathlib

import numpy as np
import onnx
import pytest

from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.session import open_session, run

W = "float[4,4] W = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,8.0,7.0,6.0,5.0,4.0,3.0,2.0}"

# operators whose definition changed by opset 11, with attributes that are inputs today
CHANGED = {
    "slice": (9, "[cut] y = Slice<axes = [1], starts = [1], ends = [3]>(x)"),
    "top-k": (9, "[top] v, i = TopK<k = 2>(x)  [out] y = Add(v, v)"),
    "clip": (10, "[clip] y = Clip<min = -0.5, max = 0.5>(x)"),
    "pad": (10, '[pad] y = Pad<mode = "reflect", pads = [0, 1, 0, 1]>(x)'),
    "upsample": (8, '[up] y = Upsample<mode = "nearest", scales = [1.0, 2.0]>(x)'),
    "gemm": (7, "[fc] y = Gemm<transB = 1>(x, W, W)"),
    "squeeze": (9, "[a] t = Unsqueeze<axes = [0]>(x)  [b] y = Squeeze<axes = [0]>(t)"),
    "dropout": (9, "[drop] t = Dropout<ratio = 0.5>(x)  [relu] y = Relu(t)"),
    "softmax": (9, "[fc] t = MatMul(x, W)  [soft] y = Softmax<axis = 1>(t)"),
    "sum": (7, "[sum] y = Sum(x, W, x)"),
}


def old_model(opset: int, body: str) -> onnx.ModelProto:
    head = f'<ir_version: 4, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{head} g (float[4,4] x) => (float[A,B] y) <{W}> {{ {body} }}")


@pytest.mark.parametrize("case", CHANGED)
def test_an_old_model_gives_what_the_runtime_gives_for_it(
    case: str, tmp_path: pathlib.Path
) -> None:
    opset, body = CHANGED[case]
    proto = old_model(opset, body)
    path = tmp_path / "old.onnx"
    onnx.save(proto, path)
    opened = open_model(proto)
    assert opened.model.opset_imports[""] == 11
    [told] = [item for item in opened.diagnostics if item.code is Code.OPSET_RAISED]
    assert told.values == {"from": opset, "to": 11}
    feed = generate_feed(opened.model)
    want, got = run(open_session(path), feed), run(open_session(opened.model), feed)
    np.testing.assert_array_equal(got["y"], want["y"])
    kept = {node.name for node in proto.graph.node} - {"up"}  # Upsample has become a Resize
    assert kept <= {node.name for node in opened.model.graph}


def test_an_old_model_compiles_and_keeps_its_large_weights_outside(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "W")
    proto = old_model(9, "[fc] t = MatMul(x, W)  [clip] y = Clip<min = -1.0, max = 1.0>(t)")
    proto.graph.initializer[0].CopyFrom(weight)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    artifact = qcompile(path, recipe={"base": "weight-int8", "force": True})
    assert artifact.plan.count()["quantized"] == 1
    assert all(item["cosine"] > 0.999 for item in artifact.report.fidelity)


def test_an_operator_without_a_newer_form_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    proto = old_model(7, "[a] t = ImageScaler<scale = 2.0>(x)  [b] y = Crop<border = [0]>(t)")
    with pytest.raises(
        QcError, match=r"opset 7.*Crop, ImageScaler exist in no such opset"
    ) as caught:
        open_model(proto)
    assert caught.value.code is Code.UNKNOWN_OPSET
    assert capsys.readouterr() == ("", "")
    assert not logging.getLogger("onnxscript.version_converter").filters

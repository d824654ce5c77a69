"""What exporters write of outputs is not believed inside of the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import open_text
from qcompiler import qcompile
from qcompiler.diagnostics import Code

HEADS = """<ir_version: 10, opset_import: ["" : 17]>
heads (float[batch,4,height,width] x) => (float[batch,dim,1] fine, float[batch,dim,1] coarse)
  <int64[3] ROWS = {0, -1, 1}> {
  [conv1] a = Conv<strides = [2, 2], kernel_shape = [1, 1]>(x, W, B)
  [conv2] b = Conv<strides = [4, 4], kernel_shape = [1, 1]>(x, W, B)
  [rows1] c = Reshape(a, ROWS)
  [rows2] d = Reshape(b, ROWS)
  [sigmoid1] fine = Sigmoid(c)
  [sigmoid2] coarse = Sigmoid(d)
}
"""
FORCED = {"base": "static-int8", "force": True}


def heads(bias: float = 0.0) -> ir.Model:
    """Two heads whose outputs have one name for two sizes, as YuNet's exporter writes them."""
    weight = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)
    return open_text(HEADS, {"W": weight, "B": np.full(4, bias, np.float32)})


@pytest.fixture
def pictures() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 4, 16, 16)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("form", ["ort", "qdq"])
def test_outputs_of_one_name_and_two_sizes_share_no_buffer(form: str, pictures) -> None:
    artifact = qcompile(heads(), target="cpu", recipe=FORCED, calibration=pictures, form=form)
    assert artifact.plan.count()["quantized"] == 4
    for size in (8, 16):
        found = artifact.run({"x": np.ones((2, 4, size, size), np.float32)})
        assert found["fine"].shape == (2, size * size, 1)
        assert found["coarse"].shape == (2, size * size // 4, 1)


def test_an_output_too_small_for_its_range_is_told_and_no_error(pictures) -> None:
    artifact = qcompile(heads(-20.0), target="cpu", recipe=FORCED, calibration=pictures)
    told = [item for item in artifact.report.diagnostics if item.code is Code.LOW_FIDELITY]
    assert {item.where for item in told} == {"fine", "coarse"}
    assert all("stored in steps of 0.00392" in item.message for item in told)


DETECTOR = """<ir_version: 10, opset_import: ["" : 17]>
g (float[1,4,8,8] x) => (int64[K,2] where, float[1,4,8,8] y) {
  [conv] a = Conv<kernel_shape = [1, 1]>(x, W, B)
  [relu] y = Relu(a)
  [found] c = NonZero(y)
  [turned] w = Transpose(c)
  [cut] where = Slice(w, LOW, HIGH, ONE)
}
"""


def test_what_is_selected_by_value_may_be_another_number_of_things(pictures) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)
    ends = {"LOW": [2], "HIGH": [4], "ONE": [1]}
    model = open_text(
        DETECTOR,
        {"W": weight, "B": np.zeros(4, np.float32)}
        | {name: np.array(value, np.int64) for name, value in ends.items()},
    )
    feeds = [{"x": item["x"][:, :, :8, :8]} for item in pictures]
    artifact = qcompile(model, target="cpu", recipe=FORCED, calibration=feeds)
    assert artifact.plan.count()["quantized"] == 1
    [told] = [item for item in artifact.report.diagnostics if item.where == "where"]
    assert told.code is Code.LOW_FIDELITY


def test_an_output_of_a_split_that_nobody_reads_has_the_integers_type(pictures) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[N,4,16,16] x) => (float[N,2,16,16] y) {
      [conv] a = Conv<kernel_shape = [1, 1]>(x, W, B)  [relu] r = Relu(a)
      [split] first, second = Split<axis = 1, num_outputs = 2>(r)
      [last] y = Conv<kernel_shape = [1, 1]>(first, V)
    }"""
    rng = np.random.default_rng(0)
    model = open_text(
        text,
        {
            "W": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
            "B": np.zeros(4, np.float32),
            "V": rng.standard_normal((2, 2, 1, 1)).astype(np.float32),
        },
    )
    artifact = qcompile(model, target="cpu", recipe=FORCED, calibration=pictures, form="ort")
    assert artifact.plan.count()["carried"] == 1
    assert artifact.report.fidelity[0]["cosine"] > 0.99

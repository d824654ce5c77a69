"""Learned rounding and measured biases as steps of a compile: nearer to float, layer by layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from qcompiler import qcompile
from qcompiler.artifact import Artifact
from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime.session import open_session, run

TARGET = "cpu-vnni"
TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[n,8,16,16] x) => (float[n,12,16,16] y)
<float[16,8,1,1] w1 = {0}, float[16] b1 = {0}, float[16,1,3,3] w2 = {0}, float[16] b2 = {0},
 float[12,16,1,1] w3 = {0}, float[12] b3 = {0}, float lo = {0}, float hi = {6}>
{ c1 = Conv(x, w1, b1)  a1 = Clip(c1, lo, hi)
  c2 = Conv<group = 16, pads = [1,1,1,1]>(a1, w2, b2)  a2 = Clip(c2, lo, hi)
  y = Conv(a2, w3, b3) }"""


def model() -> ir.Model:
    """A block of a mobile network whose weights have a few large channels."""
    found = ir.from_onnx_text(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (
        ("w1", (16, 8, 1, 1)), ("b1", (16,)), ("w2", (16, 1, 3, 3)), ("b2", (16,)),
        ("w3", (12, 16, 1, 1)), ("b3", (12,)),
    ):  # fmt: skip
        array = 0.3 * rng.standard_normal(shape)
        if len(shape) > 1:
            array[::7] *= 12
        found.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    return found


def data(seed: int, count: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        x = rng.standard_normal((4, 8, 18, 18))
        x = x[:, :, :-2, :-2] + x[:, :, 1:-1, 1:-1] + x[:, :, 2:, 2:]  # neighbours are alike
        made.append({"x": np.maximum(x, 0).astype(np.float32)})
    return made


def compiled(
    rounding: str, biases: object = True, feeds: object = None, **more: object
) -> Artifact:
    recipe = {
        "base": "static-int8",
        "force": True,
        "weights": {"granularity": "tensor", "rounding": rounding},
        "correct_biases": biases,
        "verify": {"enabled": False},
        **more,
    }
    return qcompile(model(), TARGET, recipe, data(1) if feeds is None else feeds, check=True)


def error(artifact: Artifact) -> float:
    session = open_session(model())
    pairs = [(run(session, feed)["y"], artifact.run(feed)["y"]) for feed in data(2)]
    return float(np.mean([np.square(a - b).mean() for a, b in pairs]))


def test_each_step_brings_the_output_nearer_to_float_than_the_one_before() -> None:
    nearest, moment = error(compiled("nearest", False)), error(compiled("moment", False))
    learned = error(compiled("adaround", True))
    assert moment < nearest
    assert learned < 0.7 * nearest


def test_a_measured_bias_is_better_than_none() -> None:
    assert error(compiled("nearest", "empirical")) < error(compiled("nearest", False))


def test_every_layer_is_told_and_its_progress_has_an_estimate() -> None:
    lines: list[str] = []
    artifact = qcompile(
        model(),
        TARGET,
        {
            "base": "static-int8",
            "force": True,
            "weights": {"rounding": "adaround"},
            "verify": {"enabled": False},
        },
        data(1),
        progress=lines.append,
    )
    codes = [d.code for d in artifact.report.diagnostics]
    told = codes.count(Code.ROUNDING_LEARNED) + codes.count(Code.ROUNDING_KEPT)
    assert told == 3
    assert [line.split()[1] for line in lines if line.startswith("learn-rounding ")] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    assert any("s left" in line for line in lines)


def test_few_samples_are_told() -> None:
    artifact = compiled("adaround", feeds=data(1, count=1))
    assert any(d.code is Code.FEW_FOR_LEARNING for d in artifact.report.diagnostics)


@pytest.mark.parametrize(("rounding", "biases"), [("adaround", True), ("moment", "empirical")])
def test_data_that_can_be_read_once_is_refused(rounding: str, biases: object) -> None:
    with pytest.raises(QcError, match="read once"):
        compiled(rounding, biases, feeds=iter(data(1)))

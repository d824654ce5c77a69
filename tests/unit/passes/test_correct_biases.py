"""Bias correction: the mean of an output is that of the float model again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph_text import with_weights
from qcompiler import qcompile
from qcompiler.frontends import open_model
from qcompiler.runtime.session import open_session, run

C, OUT = 8, 12
RANDOM = np.random.default_rng(5)


def model(bias: bool, groups: int = 1) -> ir.Model:
    given, declared = (", b", f", float[{OUT}] b") if bias else ("", "")
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float[n,{C},h,w] x, float[{OUT},{C // groups},3,3] k{declared})
        => (float[n,{OUT},h,w] y) {{
        y = Conv<pads=[1,1,1,1], group={groups}>(x, k{given}) }}"""
    # weights that round badly: one large tap sets the scale, all others are 0.4 steps of it
    kernel = np.full((OUT, C // groups, 3, 3), 0.4 / 127, np.float32)
    kernel[:, 0, 1, 1] = 1.0
    arrays = {"k": kernel, "b": RANDOM.normal(size=OUT).astype(np.float32)}
    return open_model(with_weights(text, arrays)).model


def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(6)
    return [{"x": random.uniform(1, 3, (2, C, 24, 24)).astype(np.float32)} for _ in range(8)]


@pytest.mark.parametrize(("bias", "groups"), [(True, 1), (False, 1), (True, 4)])
def test_the_mean_of_each_output_channel_is_brought_back(bias: bool, groups: int) -> None:
    source = model(bias, groups)
    # rounding by moments would hide what is tested here
    passes = "observe-shapes,place-precision,calibrate,quantize-weights,{}insert-qdq,to-ort"

    def shift(correct: bool) -> float:
        recipe = {
            "base": "static-int8",
            "force": True,
            "correct_biases": correct,
            "pipeline": passes.format("correct-biases,"),
            "verify": {"enabled": False},
        }
        artifact = qcompile(source.clone(), "cpu-vnni", recipe, feeds())
        assert artifact.plan.count()["quantized"] == 1
        feed = feeds()[0]
        difference = artifact.run(feed)["y"] - run(open_session(source), feed)["y"]
        inner = difference[:, :, 1:-1, 1:-1]  # padding is not accounted for
        return float(np.abs(inner.mean(axis=(0, 2, 3))).max())

    assert shift(correct=True) < shift(correct=False) / 4

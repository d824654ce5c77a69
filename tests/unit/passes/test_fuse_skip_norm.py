"""fuse-skip-norm: residual sums and their normalizations in one kernel, and when they stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import open_text, run_ort
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form
from qcompiler_passes.lower.fuse_skip_norm import FuseSkipNorm

HEAD = '<ir_version: 11, opset_import: ["" : 23]>'
GAIN = np.linspace(0.5, 1.5, 8, dtype=np.float32)


def model(body: str, shape: str = "float[batch, length, 8]", outputs: str = "") -> ir.Model:
    inputs = f"({shape} x, float[batch, length, 8] r)"
    return open_text(
        f"{HEAD} g {inputs} => (float[batch, length, 8] y{outputs}) {{ {body} }}", {"gain": GAIN}
    )


def fused(source: ir.Model, form: Form = Form.ORT) -> ir.Model:
    result = source.clone()
    state = State(load_target("cpu-amx"), Recipe(), form)
    run_pipeline([FuseSkipNorm()], result, state, check=True)
    return result


def operators(source: ir.Model) -> list[str]:
    return [node.op_type for node in source.graph]


def feed() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(2, 3, 8)).astype(np.float32) for name in "xr"}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = Add(x, r)  y = RMSNormalization<epsilon=1e-3>(s, gain)", []),
        ("s = Add(x, r)  n = RMSNormalization(s, gain)  y = Mul(n, s)", ["Mul"]),
    ],
)
def test_sum_and_norm_are_one(body: str, left: list[str]) -> None:
    before = model(body)
    after = fused(before)
    assert operators(after) == ["SkipSimplifiedLayerNormalization", *left]
    for want, got in zip(run_ort(before, feed()), run_ort(after, feed()), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def test_a_sum_that_is_an_output_keeps_its_name() -> None:
    body = "s = Add(x, r)  y = RMSNormalization(s, gain)"
    before = model(body, outputs=", float[batch, length, 8] s")
    after = fused(before)
    assert "%y, _, _, %s = com.microsoft:SkipSimplifiedLayerNormalization" in model_text(after)
    for want, got in zip(run_ort(before, feed()), run_ort(after, feed()), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("s = Add(x, r)  y = RMSNormalization(s, gain)", "float[1, 1, 8]"),
        ("s = Add(x, r)  y = RMSNormalization<axis=2>(s, gain)", "float[batch, length, 8]"),
        ("s = Mul(x, r)  y = RMSNormalization(s, gain)", "float[batch, length, 8]"),
    ],
)
def test_what_is_another_arithmetic_stays(body: str, shape: str) -> None:
    before = model(body, shape)
    assert operators(fused(before)) == operators(before)


def test_portable_form_is_left_alone() -> None:
    before = model("s = Add(x, r)  y = RMSNormalization(s, gain)")
    assert operators(fused(before, Form.QDQ)) == operators(before)

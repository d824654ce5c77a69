"""Walks side by side on models that are not all float32: what is not learned there is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graph_text import with_weights
from qcompiler import qcompile
from qcompiler.diagnostics import Code

STEPS: dict[str, dict[str, Any]] = {
    "adaround": {"weights": {"rounding": "adaround"}},
    "empirical": {"correct_biases": "empirical"},
}


FLOATS = {"float16": np.float16, "double": np.float64}
LAYERS = {
    "float16": ("4,8,8", "c = Conv<pads = [1, 1, 1, 1]>(x, w, b) m = GlobalAveragePool(c)"),
    "double": ("8", "m = Relu(x)"),  # the runtime has no such Conv
}


def narrow(word: str) -> ir.Model:
    """Layers in ``word``, and text beside them."""
    dtype = FLOATS[word]
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(8, 4, 3, 3)).astype(dtype) / dtype(6),
        "b": random.normal(size=8).astype(dtype),
        "v": random.normal(size=(8, 6)).astype(dtype),
    }
    declared = f"{word}[8,4,3,3] w, {word}[8] b, {word}[8,6] v"
    shape, body = LAYERS[word]
    return with_weights(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g ({word}[N,{shape}] x, string[N] names, {declared}) => ({word}[N,6] y, string[N] told) {{
            {body}
            f = Flatten(m)
            y = MatMul(f, v)
            told = Identity(names)
        }}""",
        weights,
    )


@pytest.mark.parametrize(("word", "layers"), [("float16", 2), ("double", 1)])
@pytest.mark.parametrize("step", STEPS)
def test_other_floats_are_walked_and_what_is_not_learned_is_told(
    step: str, word: str, layers: int
) -> None:
    random = np.random.default_rng(1)
    shape = (8, *map(int, LAYERS[word][0].split(",")))
    names = np.array(["a"] * 8, dtype=object)
    feeds = [{"x": random.normal(size=shape).astype(FLOATS[word]), "names": names}] * 2
    recipe = {"base": "static-int8", "force": True, **STEPS[step]}
    artifact = qcompile(narrow(word), "cpu-vnni", recipe, feeds)
    assert artifact.plan.count()["quantized"] >= layers
    assert artifact.report.fidelity[0]["cosine"] > 0.99
    kept = [d for d in artifact.report.diagnostics if d.code is Code.ROUNDING_KEPT]
    assert len(kept) == (layers if step == "adaround" else 0)
    assert all("float32" in item.message for item in kept)


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ({"weights": {"rounding": "adaround"}}, Code.ROUNDING_KEPT),
        ({"correct_biases": "empirical"}, Code.BIAS_ESTIMATED),
    ],
)
def test_what_stands_behind_a_branch_is_told_and_the_rest_is_learned(
    recipe: dict[str, object], code: Code
) -> None:
    random = np.random.default_rng(0)
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N,4,8,8] x, bool c, float[8,4,3,3] w, float[8,8,3,3] v) => (float[N,8,4,4] y) {
            [before] h = Conv(x, w)
            a = If (c) <
                then_branch = t () => (float[N,8,6,6] p) { p = Relu(h) },
                else_branch = e () => (float[N,8,6,6] q) { q = Neg(h) }
            >
            [behind] y = Conv(a, v)
        }""",
        {
            name: random.normal(size=(8, channels, 3, 3)).astype(np.float32) / 6
            for name, channels in (("w", 4), ("v", 8))
        },
    )
    feeds = [
        {"x": random.normal(size=(4, 4, 8, 8)).astype(np.float32), "c": np.array(True)}
        for _ in range(3)
    ]
    asked = {"base": "static-int8", "force": True, "verify": {"guard": False}, **recipe}
    artifact = qcompile(model, "cpu-vnni", asked, feeds)
    told = {d.where: d.message for d in artifact.report.diagnostics if d.code is code}
    assert "If" in told["behind"]
    assert "If" not in told.get("before", "")
    assert artifact.plan.nodes["behind"].kernel == artifact.plan.nodes["before"].kernel

"""Language-model recipes on models whose floats are 16 bits: as exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graph_text import with_weights
from qcompiler import qcompile

pytest.importorskip("torch")

BLOCKS = 2
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"base": name} for name in ("w4-gptq", "w4-awq", "w4-teq", "w4-hqq", "w4-k-quant")},
    "w4-autoround": {"base": "w4-autoround", "autoround": {"iters": 10}},
    "distill": {"base": "w4-rtn", "distill": {"steps": 4}},
    "budget": {"base": "weight-int4", "bits_budget": 5.5},
}


def half(random: np.random.Generator) -> ir.Model:
    """Blocks of a norm, two products and a skip, in float16."""
    lines, weights, value = [], {}, "x"
    for index in range(BLOCKS):
        weights[f"g{index}"] = random.uniform(0.5, 1.5, 64)
        weights[f"a{index}"] = random.normal(size=(64, 128)) / 8
        weights[f"b{index}"] = random.normal(size=(128, 64)) / 11
        lines += [
            f"n{index} = LayerNormalization<axis = -1>({value}, g{index})",
            f"u{index} = MatMul(n{index}, a{index})",
            f"r{index} = Relu(u{index})",
            f"d{index} = MatMul(r{index}, b{index})",
            f"h{index} = Add({value}, d{index})",
        ]
        value = f"h{index}"
    declared = ", ".join(
        f"float16[{','.join(map(str, array.shape))}] {name}" for name, array in weights.items()
    )
    model = with_weights(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float16[N,S,64] x, {declared}) => (float16[N,S,64] y)
        {{ {" ".join(lines)} y = Identity({value}) }}""",
        {name: array.astype(np.float16) for name, array in weights.items()},
    )
    for node in model.graph:
        block = node.outputs[0].name[-1] if node.op_type != "Identity" else ""
        node.name = f"layers.{block}.{node.op_type}.{node.outputs[0].name}"
        node.metadata_props["qcompiler.module"] = f"layers.{block}" if block else ""
    return model


@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_of_16_bits_are_rounded_by_every_algorithm(recipe: str) -> None:
    random = np.random.default_rng(0)
    feeds = [{"x": random.normal(size=(2, 24, 64)).astype(np.float16)} for _ in range(6)]
    artifact = qcompile(half(random), "cpu-vnni", RECIPES[recipe], feeds)
    assert artifact.plan.count()["quantized"] == 2 * BLOCKS
    assert artifact.report.fidelity[0]["cosine"] > 0.97
    assert artifact.run(feeds[0])["y"].dtype == np.float16

"""Damages from gradients against what really happens to the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from qcompiler.ir.edit import constant, name_everything
from qcompiler.runtime.session import open_session, run
from qcompiler.sensitivity.gradients import weight_damages
from qcompiler_models.tiny import build, feeds

RNG = np.random.default_rng(0)


def layers_of(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.op_type == "MatMul" and constant(n.inputs[1]) is not None]


def test_damage_is_the_squared_relative_change_of_the_output() -> None:
    model = build("mlp")
    name_everything(model)
    layers = layers_of(model)
    feed = feeds("mlp", 1)[0]
    errors = {
        node.name: RNG.normal(0, 1e-4, constant(node.inputs[1]).shape).astype(np.float32)
        for node in layers
    }
    found = [
        weight_damages(
            model.graph, layers, [feed], [1, 3], lambda n, k: errors[n.name] * k, seed=seed
        )
        for seed in range(300)
    ]
    before = run(open_session(model), feed)
    for node in layers:
        value = node.inputs[1]
        kept = value.const_value
        value.const_value = ir.tensor(constant(value) + errors[node.name], name=value.name)
        after = run(open_session(model), feed)
        value.const_value = kept
        wanted = sum(
            (np.linalg.norm(after[k] - before[k]) / np.linalg.norm(before[k])) ** 2 for k in before
        )
        mean = np.mean([damages[node.name][1] for damages in found])
        assert mean == pytest.approx(wanted, rel=0.3)
        assert found[0][node.name][3] == pytest.approx(9 * found[0][node.name][1], rel=1e-3)


def test_a_layer_that_nothing_depends_on_does_no_damage() -> None:
    model = build("mlp")
    name_everything(model)
    first = layers_of(model)[0]
    weight = constant(first.inputs[1])
    copy = ir.Node("", "MatMul", list(first.inputs), name="unused")
    model.graph.insert_after(first, copy)
    damages = weight_damages(
        model.graph, [copy, first], feeds("mlp", 1), [4], lambda n, k: np.ones_like(weight)
    )
    assert damages["unused"][4] == 0.0
    assert damages[first.name][4] > 0.0

"""Damages from gradients against what really happens to the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graph_text import with_weights
from qcompiler.diagnostics import Code
from qcompiler.ir.edit import constant, name_everything
from qcompiler.runtime.session import open_session, run
from qcompiler.sensitivity.gradients import weight_damages
from qcompiler_models.tiny import build, feeds, transformer

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
            model, layers, [feed], [1, 3], lambda n, k: errors[n.name] * k, seed=seed
        ).found
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
        model, [copy, first], feeds("mlp", 1), [4], lambda n, k: np.ones_like(weight)
    ).found
    assert damages["unused"][4] == 0.0
    assert damages[first.name][4] > 0.0


def test_block_by_block_and_through_files_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = transformer(layers=3), feeds("transformer", 2)
    name_everything(model)
    layers = layers_of(model)

    def error(node: ir.Node, option: int) -> np.ndarray:
        return constant(node.inputs[1]) * np.float32(1e-3 * option)

    parts: list[str] = []
    pieces = weight_damages(
        model, layers, samples, [1, 2], error, memory=0, progress=parts.append
    ).found
    assert len(parts) > 3
    monkeypatch.setattr("qcompiler.sensitivity.gradients.repeated_blocks", lambda graph: ())
    whole = weight_damages(model, layers, samples, [1, 2], error).found
    for name, found in whole.items():
        assert found[1] > 0.0
        assert pieces[name] == pytest.approx(found, rel=1e-3)


def test_layers_before_what_has_no_gradient_are_named_and_those_behind_it_judged() -> None:
    model = switched()
    first, second = layers_of(model)
    feed = {"x": RNG.normal(size=(3, 16)).astype(np.float32), "flag": np.array(True)}
    errors = {
        node.name: RNG.normal(0, 1e-3, constant(node.inputs[1]).shape).astype(np.float32)
        for node in (first, second)
    }
    damages = weight_damages(model, [first, second], [feed], [4], lambda n, k: errors[n.name])
    assert [node.name for node in damages.unreached] == [first.name]
    assert damages.unreached[first].code is Code.NOT_LIFTABLE
    assert damages.found.keys() == {second.name}
    assert damages.found[second.name][4] > 0.0


def switched() -> ir.Model:
    """Two layers with an If between them."""
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N,16] x, bool flag, float[16,16] v, float[16,16] w) => (float[N,16] y) {
            a = MatMul(x, v)
            b = If (flag) <then_branch = t () => (float[N,16] p) { p = Relu(a) },
                           else_branch = e () => (float[N,16] q) { q = Neg(a) }>
            y = MatMul(b, w)
        }""",
        {name: RNG.normal(size=(16, 16)).astype(np.float32) for name in "vw"},
    )
    name_everything(model)
    return model

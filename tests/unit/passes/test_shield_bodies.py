"""Bodies that read moved, dequantized numbers: the runtime must not reach into them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graph_text import with_weights
from qcompiler.frontends import open_model
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler_passes.lower.shield_bodies import shield_bodies

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (bool c, float[1,4,8,8] x) => (float y) <
    float s = {0.0125}, uint8 z = {128}, int64[2] rows = {0, -1}, int64[1] zero = {0},
    int64[1] two = {2}
> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    MOVED
    y = If(c) <then_branch = t () => (float a) { a = Neg(v) },
               else_branch = e () => (float b) { b = Exp(v) }>
}
"""
MOVERS = {
    "reshape": "v = Reshape(d, rows)",
    "transpose": "v = Transpose<perm = [0, 2, 3, 1]>(d)",
    "slice": "v = Slice(d, zero, two)",
    "pool": "v = MaxPool<kernel_shape = [2, 2]>(d)",
    "unsqueeze and squeeze": "u = Unsqueeze(d, zero) v = Squeeze(u, zero)",
}


def opened(moved: str) -> ir.Model:
    return open_model(ir.from_onnx_text(TEXT.replace("MOVED", moved))).model


def body_inputs(model: ir.Model) -> set[str]:
    branch = next(node for node in model.graph if node.op_type == "If")
    bodies = [branch.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    found = set()
    for body in bodies:
        producer = body[0].inputs[0].producer()
        assert producer is not None
        found.add(producer.op_type)
    return found


@pytest.mark.parametrize("name", MOVERS)
def test_a_body_reads_moved_numbers_behind_a_pair_that_changes_none(name: str) -> None:
    model = opened(MOVERS[name])
    changed = model.clone()
    assert shield_bodies(changed.graph)
    assert body_inputs(changed) == {"DequantizeLinear"}  # else the session below aborts the process
    for chosen in (False, True):
        x = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
        feed = {"c": np.array(chosen), "x": x}
        want = run(open_session(model, settings=SessionSettings("disable")), feed)["y"]
        np.testing.assert_array_equal(run(open_session(changed), feed)["y"], want)


@pytest.mark.parametrize("moved", ["v = Relu(d)", "v = Reshape(x, rows)"])
def test_what_the_runtime_leaves_where_it_is_stays(moved: str) -> None:
    assert not shield_bodies(opened(moved).graph)


def test_the_portable_form_of_a_model_with_such_a_body_runs() -> None:
    from qcompiler import qcompile

    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (bool c, float[N,4,8,8] x) => (float y) {
        m = Conv<pads = [1, 1, 1, 1]>(x, w)
        v = Transpose<perm = [0, 2, 3, 1]>(m)
        y = If(c) <then_branch = t () => (float a) { a = Neg(v) },
                   else_branch = e () => (float b) { b = Abs(v) }>
    }
    """.replace("x) =>", "x, float[8,4,3,3] w) =>")
    random = np.random.default_rng(0)
    array = random.normal(size=(8, 4, 3, 3)).astype(np.float32) / 6
    model = with_weights(text, {"w": array})
    feeds = [
        {"c": np.array(chosen), "x": random.normal(size=(2, 4, 8, 8)).astype(np.float32)}
        for chosen in (True, False)
    ]
    recipe = {"base": "static-int8", "force": True, "verify": {"enabled": False}}
    artifact = qcompile(model, "generic-qdq", recipe, feeds)
    assert body_inputs(artifact.model) == {"DequantizeLinear"}
    assert artifact.plan.count()["quantized"] == 1
    assert artifact.run(feeds[0])["y"].max() > 0

"""AutoRound through the whole compiler."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from graph_text import with_weights
from learning import FEEDS, error_of
from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler_models import tiny

WEIGHTS = {"group_size": 16, "symmetric": True, "bits": 2}


def compiled(algorithm="autoround", feeds=FEEDS, work=None, **options):
    recipe = {
        "base": "weight-int4",
        "embeddings": False,
        "weights": {**WEIGHTS, "algorithm": algorithm},
        "autoround": {"iters": 40, "batch_size": 2, **options},
    }
    return qcompile(tiny.transformer(layers=4), "cpu-vnni", recipe, feeds, work=work)


def test_it_is_nearer_to_float_than_rounding_to_nearest():
    artifact = compiled()
    assert error_of(artifact) < 0.9 * error_of(compiled("rtn"))
    told = [d for d in artifact.report.diagnostics if d.code is Code.ROUNDING_LEARNED]
    assert told
    assert all(d.values["after"] < d.values["before"] for d in told)
    algorithms = {n.algorithm for n in artifact.plan.nodes.values() if n.algorithm}
    assert algorithms == {"autoround"}


def test_a_work_folder_gives_the_same_weights_again(tmp_path):
    first = compiled(work=tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = compiled(work=tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    for feed in FEEDS:
        for name, array in first.run(feed).items():
            np.testing.assert_array_equal(again.run(feed)[name], array)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"rules": [{"match": "matmul_106_node", "algorithm": "rtn", "bits": 8}]}],
)
def test_a_work_folder_holds_nothing_for_another_seed_or_other_neighbours(change, tmp_path):
    recipe = {
        "base": "weight-int4",
        "embeddings": False,
        "weights": {**WEIGHTS, "algorithm": "autoround"},
        "autoround": {"iters": 10, "batch_size": 2},
        "rules": [{"match": "matmul_106_node", "algorithm": "rtn"}],
    }
    model = tiny.transformer(layers=4)
    qcompile(model, "cpu-vnni", recipe, FEEDS, work=tmp_path)
    found = qcompile(model, "cpu-vnni", recipe | change, FEEDS, work=tmp_path)
    wanted = qcompile(model, "cpu-vnni", recipe | change, FEEDS)
    for feed in FEEDS:
        for name, array in wanted.run(feed).items():
            np.testing.assert_array_equal(found.run(feed)[name], array)


def test_blocks_may_learn_together_on_float_inputs():
    artifact = compiled(nblocks=4, enable_quanted_input=False)
    told = [d for d in artifact.report.diagnostics if d.code is Code.ROUNDING_LEARNED]
    assert len(told) == 1


def test_salient_channels_are_scaled_before_learning_if_asked():
    codes = {Code.SALIENT_SCALED, Code.SALIENT_KEPT}
    for asked in (True, False):
        artifact = compiled(scale_channels=asked, iters=5)
        said = {d.where for d in artifact.report.diagnostics if d.code in codes}
        layers = {n.node for n in artifact.plan.nodes.values() if n.algorithm == "autoround"}
        assert bool(said) == asked
        assert layers
        assert error_of(artifact) < error_of(compiled("rtn"))


def test_it_needs_data():
    with pytest.raises(QcError, match="QC410"):
        compiled(feeds=None)


@pytest.mark.parametrize(
    "weights",
    [{"bits": 4, "format": "nf4"}, {"bits": 4, "double_quant": {"bits": 8}}, {"bits": 1}],
)
def test_what_cannot_be_learned_is_refused(weights):
    rule = {key: value for key, value in weights.items() if key != "double_quant"}
    rules = [{"op": "MatMul", **rule, "algorithm": "autoround"}]
    double = {"double_quant": weights.get("double_quant")}
    recipe = {"base": "weight-int4", "weights": {**WEIGHTS, **double}, "rules": rules}
    with pytest.raises(QcError, match="learns integers with float scales") as caught:
        qcompile(tiny.transformer(layers=2), "cpu-vnni", recipe, FEEDS)
    assert caught.value.code is Code.USAGE
    assert caught.value.diagnostic.hint


def test_a_block_that_cannot_be_learned_through_is_rounded_to_nearest_and_told():
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,32] x, bool c, float[32,16] w) => (float[N,16] y) {
            [fc] h = MatMul(x, w)
            y = If (c) <
                then_branch = t () => (float[N,16] a) { a = Relu(h) },
                else_branch = e () => (float[N,16] b) { b = Neg(h) }
            >
        }""",
        {"w": np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)},
    )
    feed = {"x": np.ones((4, 32), np.float32), "c": np.array(True)}
    recipe = {"base": "weight-int4", "weights": {**WEIGHTS, "algorithm": "autoround", "bits": 4}}
    artifact = qcompile(model, "cpu-vnni", recipe, [feed] * 4)
    assert artifact.plan.nodes["fc"].algorithm == "autoround"
    (told,) = (d for d in artifact.report.diagnostics if d.code is Code.ROUNDING_KEPT)
    assert told.where == "fc"
    assert "If" in told.message
    assert artifact.run(feed)["y"].shape == (4, 16)

"""Bits under a budget, through the whole compiler."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

import decoders
from graph_text import with_weights
from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler_models import tiny

WEIGHTS = {"group_size": 16, "symmetric": True}


def compiled(budget, **more):
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "bits_budget": budget, **more}
    return qcompile(tiny.build("mlp"), "cpu-vnni", recipe, tiny.feeds("mlp", 4))


def bits_of(artifact):
    found = [d for d in artifact.report.diagnostics if d.code is Code.BITS_ALLOTTED]
    assert len(found) == 1
    return found[0].values["bits"], found[0].values["mean"], found[0].values["damages"]


def test_each_layer_gets_bits_and_the_budget_holds():
    artifact = compiled(7.0)
    bits, mean, damages = bits_of(artifact)
    assert mean <= 7.0
    assert len(set(bits.values())) > 1
    for name, width in bits.items():
        spec = artifact.plan.nodes[name].inputs[1]
        assert (spec.bits or spec.dtype.bitwidth) == width
        assert damages[name][2] > damages[name][4] > damages[name][8]


def test_a_large_budget_gives_all_bits_and_a_small_one_is_refused():
    bits, _, _ = bits_of(compiled(20.0))
    assert set(bits.values()) == {8}
    with pytest.raises(QcError, match=r"bits_budget.*at least"):
        compiled(1.0)


def test_rules_keep_their_bits():
    artifact = compiled(20.0)
    first = next(iter(bits_of(artifact)[0]))
    bits, _, _ = bits_of(compiled(20.0, rules=[{"match": first, "bits": 2}]))
    assert bits[first] == 2
    assert set(bits.values()) == {2, 8}


def test_a_budget_needs_data():
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "bits_budget": 5.0}
    with pytest.raises(QcError, match="QC410"):
        qcompile(tiny.build("mlp"), "cpu-vnni", recipe)


def test_damages_of_few_samples_are_told():
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "bits_budget": 7.0}
    (feed,) = tiny.feeds("mlp", 1)
    for row, few in ((feed["x"][:1], True), (np.repeat(feed["x"], 8, axis=0), False)):
        artifact = qcompile(tiny.build("mlp"), "cpu-vnni", recipe, [{"x": row}])
        said = [d.message for d in artifact.report.diagnostics if d.code is Code.FEW_SAMPLES]
        assert said == ["bits_budget saw 1 samples, wanted at least 8"] * few


def stored(artifact):
    """Bytes of the integers, scales and zero points of the weight-only products."""
    found = {}
    for node in artifact.model.graph:
        for value in node.inputs[1:4] if node.op_type == "MatMulNBits" else ():
            if value is not None:
                found[value.name] = value.const_value.nbytes
    return sum(found.values())


def test_megabytes_are_those_of_the_file():
    most = stored(compiled(20.0))
    budget = 0.7 * most / 1e6
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "megabytes_budget": budget}
    artifact = qcompile(tiny.build("mlp"), "cpu-vnni", recipe, tiny.feeds("mlp", 4))
    told = next(d for d in artifact.report.diagnostics if d.code is Code.BITS_ALLOTTED)
    assert told.values["bytes"] == stored(artifact)
    assert stored(artifact) <= 0.7 * most
    # the same in bits per weight is the same choice
    per_weight = told.values["mean"] * budget * 1e6 / told.values["bytes"]
    assert bits_of(compiled(per_weight))[0] == told.values["bits"]


def test_what_is_refused_can_be_copied():
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "megabytes_budget": 1e-6}
    with pytest.raises(QcError, match=r"megabytes_budget.*at least") as refused:
        qcompile(tiny.build("mlp"), "cpu-vnni", recipe, tiny.feeds("mlp", 4))
    assert refused.value.code is Code.TARGET_CANNOT
    enough = float(refused.value.diagnostic.hint.split()[1])
    recipe["megabytes_budget"] = enough
    artifact = qcompile(tiny.build("mlp"), "cpu-vnni", recipe, tiny.feeds("mlp", 4))
    assert stored(artifact) <= enough * 1e6


def test_one_budget_only():
    with pytest.raises(QcError, match="not both"):
        compiled(5.0, megabytes_budget=1.0)


def moved_of(artifact):
    told = next(d for d in artifact.report.diagnostics if d.code is Code.BITS_ALLOTTED)
    return told.values["moved"], told


def test_equal_bits_are_tried_and_taken_when_nothing_else_moves_the_outputs_less(monkeypatch):
    from qcompiler.sensitivity import trials

    seen = []

    def measured(model, feeds, rounded, **_):
        seen.append([{t.spec.width for t in trial.values()} for trial in rounded])
        return [2.0] * (len(rounded) - 1) + [1.0]

    monkeypatch.setattr(trials, "divergences", measured)
    artifact = compiled(7.0)
    assert set(bits_of(artifact)[0].values()) == {4}
    assert seen[0][-1] == {4}
    assert len(seen[0]) > 1
    assert "damage 1.00 of that of equal bits" in moved_of(artifact)[1].message


def test_what_is_chosen_moves_the_outputs_least_of_all_that_was_tried():
    artifact = compiled(7.0)
    moved, told = moved_of(artifact)
    assert len(moved) > 1
    assert f"damage {min(moved) / moved[-1]:.2f} of that of equal bits" in told.message


def test_damages_are_of_the_rounding_that_is_deployed():
    """Of symmetric groups the runtime's form may use negative scales, other forms may not."""
    budget = 7.0
    ours = bits_of(compiled(budget))[2]
    plain = bits_of(compiled(budget, rtn={"search": False}))[2]
    assert sum(d[2] for d in ours.values()) < sum(d[2] for d in plain.values())


def test_what_could_not_be_compared_is_told(monkeypatch):
    from qcompiler_passes.decide import allot_bits

    monkeypatch.setattr(allot_bits, "_even_bits", lambda layers, costs, budget: None)
    moved, told = moved_of(compiled(7.0))
    assert moved == [0.0]
    assert "not compared" in told.message


def test_a_table_that_the_output_layer_no_longer_shares_counts():
    pytest.importorskip("transformers")
    recipe = {
        "base": "weight-int4",
        "weights": WEIGHTS,
        "megabytes_budget": 0.06,
        "bits_choices": [3, 4, 5, 6],
        "text": {"length": 16},
    }
    model = decoders.decoder("llama-tied")
    artifact = qcompile(model, "cpu-vnni", recipe, decoders.tokens(8, 16))
    bits, _, damages = bits_of(artifact)
    assert bits["lm_head/MatMul"] == 4  # which a table can have as well
    assert damages["lm_head/MatMul"][6] < damages["lm_head/MatMul"][4]
    constants = {
        value.name: value.const_value.nbytes
        for node in artifact.model.graph
        for value in node.inputs
        if value is not None and value.const_value is not None
        if node.op_type.startswith(("MatMulNBits", "Gather", "Unpack"))
        and value.dtype != ir.DataType.INT64
    }
    assert sum(constants.values()) <= 0.06e6


def test_layers_before_an_operator_without_a_gradient_are_tried():
    rng = np.random.default_rng(0)
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N,64] x, bool flag, float[64,64] v, float[64,64] w) => (float[N,64] y) {
            a = MatMul(x, v)
            b = If (flag) <then_branch = t () => (float[N,64] p) { p = Relu(a) },
                           else_branch = e () => (float[N,64] q) { q = Neg(a) }>
            y = MatMul(b, w)
        }""",
        {name: rng.normal(size=(64, 64)).astype(np.float32) for name in "vw"},
    )
    x = rng.normal(size=(8, 64)).astype(np.float32)
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "bits_budget": 8.0}
    artifact = qcompile(model, "cpu-vnni", recipe, [{"x": x, "flag": np.array(True)}] * 8)
    told = next(d for d in artifact.report.diagnostics if d.code is Code.BITS_ALLOTTED)
    assert "1 layers tried" in told.message
    # to nearest, each of the two layers loses about as much of its output
    first, second = told.values["damages"].values()
    for bits in (2, 4, 8):
        assert 0.25 < first[bits] / second[bits] < 4.0

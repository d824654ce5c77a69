"""Bits under a budget, through the whole compiler."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

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

"""pack-products: one product for layers of one input, the same numbers, and when it must not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from decoders import decoder, decoder_feed, tokens
from packing import WEIGHTS, compiled_without, packed_by
from qcompiler import qcompile
from qcompiler.ir.walk import all_graphs
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form
from qcompiler_passes.lower.add_prefill import PREFILL_SETTINGS
from qcompiler_passes.lower.pack_products import PackProducts

pytest.importorskip("torch")

PLAIN = SessionSettings("disable")


def compiled(name: str, **changes: Any) -> ir.Model:
    return compiled_without(("pack-products",), name, **changes)


def pack(model: ir.Model, form: Form = Form.ORT) -> ir.Model:
    return packed_by(PackProducts(), model, form)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for graph in all_graphs(model) for node in graph)


def outputs(model: ir.Model, length: int, settings: SessionSettings = PLAIN) -> dict[str, Any]:
    session = open_session(model, settings=settings, threads=1)
    ids = tokens(2, length)
    return run(session, decoder_feed(ids, np.ones_like(ids), None, input_specs(model)))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def filed(model: ir.Model) -> int:
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(item.nbytes for item in constants if item is not None and item.size > 16)


# q, k and v are one product already where attention takes them packed; qwen3 has norms between
@pytest.mark.parametrize(("name", "fewer"), [("llama", 2), ("phi3", 2), ("qwen3", 2 + 2 * 2)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_products_give_the_same_bits(name: str, fewer: int, symmetric: bool) -> None:
    apart = compiled(name, weights={**WEIGHTS, "symmetric": symmetric})
    together = pack(apart)
    assert operators(apart)["MatMulNBits"] - operators(together)["MatMulNBits"] == fewer
    assert filed(apart) == filed(together)
    for length in (1, 5):
        assert same(outputs(apart, length), outputs(together, length))


@pytest.mark.parametrize("prefill", ["int8", "int8-stored"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_branch_for_prompts_makes_its_weights_of_pieces(prefill: str, symmetric: bool) -> None:
    apart = compiled("llama", prefill=prefill, weights={**WEIGHTS, "symmetric": symmetric})
    together = pack(apart)
    before, after = operators(apart), operators(together)
    assert before["MatMulNBits"] - after["MatMulNBits"] == 2
    assert before["MatMulIntegerToFloat"] == after["MatMulIntegerToFloat"]
    assert filed(apart) == filed(together)
    for length in (1, 20):
        one, other = (outputs(model, length, PREFILL_SETTINGS) for model in (apart, together))
        assert same(one, other)


def test_products_of_other_bits_stay_apart() -> None:
    apart = compiled("llama", rules=[{"match": "*up_proj*", "bits": 8}])
    assert operators(pack(apart)) == operators(apart)


def test_products_that_are_made_when_the_model_is_loaded_stay_apart() -> None:
    apart = compiled("llama", weights={**WEIGHTS, "bits": 3})
    assert operators(pack(apart)) == operators(apart)


def test_portable_form_is_left_alone() -> None:
    apart = compiled("llama")
    assert operators(pack(apart, Form.QDQ)) == operators(apart)


def test_a_model_without_a_cache_is_left_alone() -> None:
    model = compiled("llama")
    for node in list(model.graph):
        if node.op_type == "GroupQueryAttention":
            node.op_type = "Attention"
    assert operators(pack(model)) == operators(model)


def test_every_planned_kernel_is_seen_in_the_packed_graph() -> None:
    recipe = {"base": "weight-int4", "weights": WEIGHTS}
    artifact = qcompile(decoder("llama"), "cpu", recipe, threads=1)
    kernels = artifact.report.to_dict()["kernels"]
    assert operators(artifact.model)["MatMulNBits"] == 2 * 4 + 1
    if kernels["planned"]:  # proof needs a host of the target
        assert kernels["seen"] == kernels["planned"] >= 2 * 7 + 1

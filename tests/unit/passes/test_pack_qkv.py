"""pack-qkv: one product before attention, the same numbers, and when it must not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from packing import WEIGHTS, compiled_without, packed_by
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form
from qcompiler_passes.lower.pack_qkv import PackQkv

pytest.importorskip("torch")


def compiled(name: str, **changes: Any) -> ir.Model:
    return compiled_without(("pack-qkv", "pack-products"), name, **changes)


def pack(model: ir.Model, form: Form = Form.ORT) -> ir.Model:
    return packed_by(PackQkv(), model, form)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def outputs(model: ir.Model) -> dict[str, np.ndarray]:
    session = open_session(model, settings=SessionSettings("disable"), threads=1)
    return run(session, generate_feed(model))


@pytest.mark.parametrize("name", ["llama", "llama-biases", "phi3", "qwen2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_products_give_the_same_bits(name: str, symmetric: bool) -> None:
    apart = compiled(name, weights={**WEIGHTS, "symmetric": symmetric})
    together = pack(apart)
    assert operators(apart)["MatMulNBits"] - operators(together)["MatMulNBits"] == 2 * 2
    before, after = outputs(apart), outputs(together)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_products_of_other_bits_stay_apart() -> None:
    rule = {"match": "*v_proj*", "bits": 8}
    apart = compiled("llama", rules=[rule])
    assert operators(pack(apart)) == operators(apart)


def test_norms_between_product_and_attention_keep_them_apart() -> None:
    apart = compiled("qwen3")
    assert operators(pack(apart)) == operators(apart)


def test_portable_form_is_left_alone() -> None:
    apart = compiled("llama")
    assert operators(pack(apart, Form.QDQ)) == operators(apart)

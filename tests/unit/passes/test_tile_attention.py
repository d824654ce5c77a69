"""tile-attention: the same numbers by another kernel, for long plain attention only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code
from qcompiler.pipeline.contract import State
from qcompiler.targets.schema import Form
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.lower.tile_attention import TileAttention
from rewriting import ops, parse, rewrite, state, worst

LONG = 1024
EXACT = 1e-5  # sums over positions in another order


def attention(attributes: str = "", inputs: str = "q, k, v", keys: str = "S") -> ir.Model:
    declared = f"float[B,S,16] q, float[B,{keys},16] k, float[B,{keys},16] v"
    if "mask" in inputs:
        declared += ", float[S,S] mask"
    return parse(
        f"g ({declared}) => (float[B,S,16] y)"
        f"{{ y = Attention <q_num_heads = 2, kv_num_heads = 2{attributes}> ({inputs}) }}"
    )


def feed(model: ir.Model, queries: int, keys: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "q": (2, queries, 16),
        "k": (2, keys, 16),
        "v": (2, keys, 16),
        "mask": (queries, keys),
    }
    return {
        str(value.name): rng.normal(size=shapes[str(value.name)]).astype(np.float32)
        for value in model.graph.inputs
    }


def observed(model: ir.Model, queries: int, keys: int, form: Form = Form.ORT) -> State:
    given = state(form=form)
    given.sample = feed(model, queries, keys)
    ObserveShapes().run(model, given)
    return given


@pytest.mark.parametrize("attributes", ["", ", scale = 0.5", ", softcap = 0.0, is_causal = 0"])
def test_long_attention_is_computed_in_tiles(attributes: str) -> None:
    model = attention(attributes)
    tiled = rewrite(model, TileAttention(), given=observed(model, LONG, LONG))
    assert ops(tiled) == ["MultiHeadAttention"]
    assert tiled.graph[0].name == model.graph[0].name
    assert tiled.opset_imports["com.microsoft"] == 1
    assert worst(model, tiled, feed(model, LONG, LONG)) < EXACT


def test_the_length_that_decided_is_told() -> None:
    model = attention(keys="T")
    (said,) = TileAttention().run(model, observed(model, LONG + 5, LONG + 3)).diagnostics
    assert said.code is Code.TILED_ATTENTION
    assert f"seen with {LONG + 3} positions" in said.message


@pytest.mark.parametrize("keys", [LONG, LONG + 3])
def test_what_was_seen_long_may_run_short(keys: int) -> None:
    model = attention(keys="T")
    tiled = rewrite(model, TileAttention(), given=observed(model, LONG, keys))
    assert worst(model, tiled, feed(model, 3, 5)) < EXACT


@pytest.mark.parametrize(
    ("model", "queries", "keys"),
    [
        (attention(), LONG - 1, LONG - 1),
        (attention(keys="T"), 1, LONG),  # a decoder's step
        (attention(", is_causal = 1"), LONG, LONG),
        (attention(", softcap = 30.0"), LONG, LONG),
        (attention(inputs="q, k, v, mask"), LONG, LONG),
    ],
)
def test_short_masked_or_capped_attention_stays(model: ir.Model, queries: int, keys: int) -> None:
    given = observed(model, queries, keys)
    assert ops(rewrite(model, TileAttention(), given=given)) == ["Attention"]


def test_the_portable_form_keeps_the_standard_operator() -> None:
    model = attention()
    given = observed(model, LONG, LONG, Form.QDQ)
    assert ops(rewrite(model, TileAttention(), given=given)) == ["Attention"]


def test_heads_shared_by_queries_stay() -> None:
    model = parse(
        "g (float[B,S,16] q, float[B,S,8] k, float[B,S,8] v) => (float[B,S,16] y)"
        "{ y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) }"
    )
    given = state()
    rng = np.random.default_rng(0)
    given.sample = {
        name: rng.normal(size=(1, LONG, width)).astype(np.float32)
        for name, width in (("q", 16), ("k", 8), ("v", 8))
    }
    ObserveShapes().run(model, given)
    assert ops(rewrite(model, TileAttention(), given=given)) == ["Attention"]

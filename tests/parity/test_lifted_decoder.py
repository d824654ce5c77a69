"""Operators of decoders, lifted, against ONNX Runtime, which alone defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from lifted_case import runtime, torch
from qcompiler.lift import lift

BATCH, HEADS, SHARED, WIDTH = 2, 4, 2, 16


def compare(op_type: str, inputs: dict[str, Any], outputs: list[str], **attributes: Any) -> None:
    """Same numbers from the runtime and the lifted form; an input of None is absent."""
    node = helper.make_node(
        op_type,
        [name if array is not None else "" for name, array in inputs.items()],
        outputs,
        name="node",
        domain="com.microsoft",
        **attributes,
    )
    feed = {name: array for name, array in inputs.items() if array is not None}
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feed.items()
        ],
        [helper.make_tensor_value_info(name, 1, None) for name in outputs if name],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    wanted = runtime(model, feed)
    found = lift(ir.from_proto(model).graph)(*[torch.from_numpy(a) for a in feed.values()])
    for want, got in zip(wanted, found, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"do_rotary": 1},
        {"do_rotary": 1, "rotary_interleaved": 1, "scale": 0.3},
        {"do_rotary": 1, "local_window_size": 3},
        {"softcap": 2.0},
    ],
    ids=str,
)
def test_group_query_attention(past: int, packed: bool, attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    rows = 1 if past else 7  # the runtime continues several sequences by one token at a time

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    query, key, value = (floats(BATCH, rows, n * WIDTH) for n in (HEADS, SHARED, SHARED))
    if packed:
        query, key, value = np.concatenate([query, key, value], -1), None, None
    angles = np.outer(np.arange(32), 10.0 ** -np.arange(WIDTH // 2)).astype(np.float32)
    rotary = attributes.get("do_rotary")
    inputs = {
        "query": query,
        "key": key,
        "value": value,
        "past_key": floats(BATCH, SHARED, past, WIDTH),
        "past_value": floats(BATCH, SHARED, past, WIDTH),
        "seqlens_k": np.full(BATCH, past + rows - 1, np.int32),
        "total_sequence_length": np.asarray(past + rows, np.int32),
        "cos_cache": np.cos(angles) if rotary else None,
        "sin_cache": np.sin(angles) if rotary else None,
    }
    if not rotary:
        del inputs["cos_cache"], inputs["sin_cache"]
    outputs = ["y", "present_key", "present_value"]
    compare(
        "GroupQueryAttention", inputs, outputs,
        num_heads=HEADS, kv_num_heads=SHARED, **attributes,
    )  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
def test_skip_simplified_layer_normalization(bias: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((2, 3, 8)).astype(np.float32),
        "skip": rng.standard_normal((2, 3, 8)).astype(np.float32),
        "gamma": rng.standard_normal(8).astype(np.float32),
    }
    if bias:
        inputs["bias"] = rng.standard_normal(8).astype(np.float32)
    outputs = ["y", "", "", "sum"]
    compare("SkipSimplifiedLayerNormalization", inputs, outputs, epsilon=1e-5)

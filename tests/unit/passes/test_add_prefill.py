"""add-prefill: prompts take int8 products, single tokens what they took before."""

from __future__ import annotations

import collections
import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from decoders import decoder, decoder_feed, tokens
from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code
from qcompiler.ir.edit import Tape
from qcompiler.ir.walk import body_graphs
from qcompiler.numerics.byte_columns import byte_columns, column_steps, dequantized
from qcompiler.numerics.packing import pack_bits
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler_passes.apply.weight_functions import define_functions
from qcompiler_passes.lower.add_prefill import PREFILL_SETTINGS
from qcompiler_passes.lower.int8_products import byte_weight, stored_weight

WEIGHTS = {"bits": 4, "group_size": 16, "symmetric": True}


def compiled(name: str, prefill: str | None, **changes: Any) -> Artifact:
    pytest.importorskip("torch")
    recipe = {
        "base": "weight-int4",
        "weights": WEIGHTS,
        "verify": {"enabled": False},
        "prefill": prefill,
        **changes,
    }
    form = recipe.pop("form", None)
    return qcompile(decoder(name), "cpu-amx", recipe, form=form)


def step(artifact: Artifact, ids: np.ndarray, past: Any = None, before: int = 0) -> Any:
    mask = np.ones((len(ids), before + ids.shape[1]), np.int64)
    return artifact.run(decoder_feed(ids, mask, past, input_specs(artifact.model)))


def operators(graph: ir.Graph) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in graph)


def branches(model: ir.Model) -> dict[str, collections.Counter[str]]:
    (choice,) = (node for node in model.graph if node.op_type == "If")
    return {str(graph.name): operators(graph) for graph in body_graphs(choice)}


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    a, b = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [64, 40])
def test_int8_weights_are_those_of_few_bits_to_half_a_step(
    bits: int, symmetric: bool, k: int
) -> None:
    rng, n, size = np.random.default_rng(bits), 6, 16
    blocks = -(-k // size)
    codes = rng.integers(0, 1 << bits, (n, blocks, size))
    scale = rng.uniform(-0.1, 0.1, (n, blocks)).astype(np.float32)
    scale[2] = 0.0
    zeros = rng.integers(0, 1 << bits, (n, blocks))
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    wanted = ((codes - zeros[..., None]) * scale[..., None]).reshape(n, -1)[:, :k].T

    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23, "com.microsoft": 1})
    model = ir.Model(graph, ir_version=10)
    tape = Tape(graph, "w")
    constants = [pack_bits(codes, bits), scale]
    if not symmetric:
        constants.append(pack_bits(zeros, bits))
    values = [tape.op("Identity", array) for array in constants]
    product = ir.node(
        "MatMulNBits",
        [None, *(value.producer().inputs[0] for value in values)],
        {"K": k, "N": n, "bits": bits, "block_size": size},
        domain="com.microsoft",
    )
    weight = byte_weight(tape, product)
    graph.extend(tape.nodes)
    graph.outputs.extend([weight.q, weight.scale])
    graph.opset_imports["qcompiler"] = 1
    define_functions(model)
    q, steps = run(open_session(model, settings=PREFILL_SETTINGS), {}).values()

    assert q.dtype == np.int8
    assert q.shape == (k, n)
    assert weight.size == q.nbytes + steps.nbytes
    # scales relative to the step are float16: 11 bits of numbers up to 127
    bound = (0.5 + 127 * 2.0**-11) * steps
    assert (np.abs(q * steps - wanted) <= bound).all()
    packed = (*constants[1:], None)[:2]
    np.testing.assert_allclose(steps, column_steps(*packed, bits), rtol=1e-6)
    stored = byte_columns(constants[0], *packed, bits, k)
    assert (np.abs(stored * steps - wanted) <= 0.5001 * steps).all()
    assert (np.abs(q.astype(np.int32) - stored) <= 1).all()


@pytest.mark.parametrize("k", [64, 40])
def test_int8_weights_have_rows_multiplied_and_columns_divided(k: int) -> None:
    rng, n, bits, size = np.random.default_rng(k), 6, 4, 16
    blocks = -(-k // size)
    data = rng.integers(0, 256, (n, blocks, size * bits // 8)).astype(np.uint8)
    scale = rng.uniform(0.05, 0.1, (n, blocks)).astype(np.float32)
    rows, columns = (rng.uniform(0.2, 5.0, length).astype(np.float32) for length in (k, n))
    wanted = dequantized(data, scale, None, bits)[:, :k].T * rows[:, None] / columns

    found = {}
    for make in (byte_weight, stored_weight):
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 23, "com.microsoft": 1})
        model, tape = ir.Model(graph, ir_version=10), Tape(graph, "w")
        values = [tape.op("Identity", array).producer().inputs[0] for array in (data, scale)]
        attributes = {"K": k, "N": n, "bits": bits, "block_size": size}
        product = ir.node("MatMulNBits", [None, *values], attributes, domain="com.microsoft")
        weight = make(tape, product, rows, columns)
        outputs = [tape.op("Identity", value) for value in (weight.q, weight.scale)]
        graph.extend(tape.nodes)
        graph.outputs.extend(outputs)
        graph.opset_imports["qcompiler"] = 1
        define_functions(model)
        q, steps = run(open_session(model, settings=PREFILL_SETTINGS), {}).values()
        bound = (0.5 + 2 * 127 * 2.0**-11) * steps  # two factors in float16
        assert (np.abs(q * steps - wanted) <= bound).all()
        found[make] = steps
    np.testing.assert_allclose(found[byte_weight], found[stored_weight], rtol=1e-6)


def test_large_channels_are_levelled_for_prompts_alone() -> None:
    recipe = {"base": "weight-int4", "weights": WEIGHTS, "verify": {"enabled": False}}
    model = decoder("llama")
    with pytest.importorskip("torch").no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[:16] *= 60.0
            for after in (layer.self_attn, layer.mlp):
                for weight in after.parameters():
                    if weight.ndim == 2 and weight.shape[1] == norm.weight.shape[0]:
                        weight[:, :16] /= 60.0
    ids = tokens(2, 24)
    found = {}
    for prefill, data in ((None, None), ("int8", None), ("int8", ids), ("int8-stored", ids)):
        made = {**recipe, "prefill": prefill, "text": {"length": 24, "samples": 2}}
        artifact = qcompile(model, "cpu-amx", made, calibration=data)
        found[prefill, data is not None] = step(artifact, ids), step(artifact, ids[:, :5])
        if data is not None:
            (told,) = (d for d in artifact.report.diagnostics if d.code is Code.PREFILL_MEMORY)
            assert "channels of 7 of their inputs are levelled" in told.message
    want, short = found[None, False]

    def error(key: tuple[str, bool]) -> float:
        return float(np.square(found[key][0]["logits"] - want["logits"]).mean())

    assert error(("int8", True)) < error(("int8", False)) / 4
    assert error(("int8-stored", True)) < error(("int8", False)) / 4
    for name, value in short.items():
        np.testing.assert_array_equal(value, found["int8", True][1][name], name)


@pytest.mark.parametrize(
    "name", ["llama", "llama-biases", "qwen3", "phi3", "gemma2", "gpt2", "phi", "olmo2"]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_prompts_are_near_and_tokens_the_same_bits(name: str, symmetric: bool) -> None:
    weights = {**WEIGHTS, "symmetric": symmetric}
    plain, both = (compiled(name, prefill, weights=weights) for prefill in (None, "int8"))
    ids = tokens(2, 24)
    want, got = step(plain, ids), step(both, ids)
    for key, value in want.items():
        assert cosine(value, got[key]) > 0.998, key
        assert got[key].shape == value.shape
    assert not np.array_equal(want["logits"], got["logits"])

    want, again = step(plain, ids[:, :1], got, 24), step(both, ids[:, :1], got, 24)
    for key, value in want.items():
        np.testing.assert_array_equal(value, again[key], key)


@pytest.mark.parametrize("length", [1, 15])
def test_short_prompts_stay_what_they_are(length: int) -> None:
    plain, both = compiled("llama", None), compiled("llama", "int8")
    ids = tokens(3, length)
    want, got = step(plain, ids), step(both, ids)
    for key, value in want.items():
        np.testing.assert_array_equal(value, got[key], key)


def test_each_branch_has_its_own_products() -> None:
    artifact = compiled("llama", "int8", last_logits=True)
    found = branches(artifact.model)
    assert found["prefill"]["MatMulIntegerToFloat"] == 10
    assert found["decode"]["MatMulNBits"] == 8, "gate and up are one"
    assert found["prefill"]["MatMulNBits"] == found["decode"]["MatMulIntegerToFloat"] == 0
    # rows are quantized once for gate and up
    assert found["prefill"]["Abs"] == 8
    assert operators(artifact.model.graph)["MatMulNBits"] == 1, "the head reads one position"
    assert next(value.name for value in artifact.model.graph.outputs) == "logits"


def test_a_head_of_all_positions_is_among_the_layers() -> None:
    found = branches(compiled("llama", "int8").model)
    assert found["prefill"]["MatMulIntegerToFloat"] == 11


def test_the_memory_is_told() -> None:
    artifact = compiled("llama", "int8", last_logits=True)
    (told,) = (item for item in artifact.report.diagnostics if item.code is Code.PREFILL_MEMORY)
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    columns = 64 + 2 * 32 + 64 + 2 * 96 + 64
    size = 2 * (layer + 4 * columns)
    assert told.values == {"bytes": size, "file_bytes": 0, "weights": 10}


def test_stored_weights_are_those_of_folding() -> None:
    made, stored = (compiled("llama", way, last_logits=True) for way in ("int8", "int8-stored"))
    assert made.settings == stored.settings == PREFILL_SETTINGS
    (told,) = (item for item in stored.report.diagnostics if item.code is Code.PREFILL_MEMORY)
    held = (value.const_value for value in stored.model.graph.initializers.values())
    assert told.values["file_bytes"] == told.values["bytes"]
    assert sum(item.nbytes for item in held if item.dtype is ir.DataType.INT8) > 0
    ids = tokens(2, 20)
    want, got = step(made, ids), step(stored, ids)
    for key, value in want.items():
        assert cosine(value, got[key]) > 0.999, key


@pytest.mark.parametrize("prefill", ["int8", "int8-stored"])
@pytest.mark.parametrize("bits", [3, 4])
def test_branches_own_their_constants_once_the_model_is_loaded(
    prefill: str, bits: int, tmp_path: pathlib.Path
) -> None:
    weights = {**WEIGHTS, "bits": bits}
    artifact = compiled("llama", prefill, weights=weights, last_logits=True)
    path = tmp_path / "optimized.onnx"
    open_session(artifact.model, settings=artifact.settings, optimized_path=path)
    graph = ir.load(path).graph
    (choice,) = (node for node in graph if node.op_type == "If")
    for branch in body_graphs(choice):
        assert "Identity" not in operators(branch)
        read = {value for node in branch for value in node.inputs if value is not None}
        outer = {str(value.name) for value in read if value.graph is graph}
        filed = {name for name in outer if name.endswith("/q")}
        outside = (branch.name, prefill, bits) == ("prefill", "int8-stored", 4)
        assert len(filed) == (10 if outside else 0)
        assert not (outer - filed) & set(graph.initializers)


def test_three_bits_in_files_are_unpacked_for_both() -> None:
    weights = {**WEIGHTS, "bits": 3}
    plain, both = (compiled("llama", prefill, weights=weights) for prefill in (None, "int8"))
    ids = tokens(1, 20)
    assert cosine(step(plain, ids)["logits"], step(both, ids)["logits"]) > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "float"}, "no product of more than one row"),
        ({"form": "qdq"}, "form qdq"),
    ],
)
def test_what_cannot_have_it_is_told(changes: dict[str, Any], message: str) -> None:
    artifact = compiled("llama", "int8", **changes)
    (told,) = (item for item in artifact.report.diagnostics if item.code is Code.NO_PREFILL)
    assert message in told.message
    assert "If" not in operators(artifact.model.graph)

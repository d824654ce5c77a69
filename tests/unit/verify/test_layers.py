"""Comparing node by node: errors where they are, shares, jumps, foldings, other people's models."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import open_text
from decoders import decoder, decoder_feed
from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.verify.layer_report import merge_layers
from qcompiler.verify.layers import LayerComparison, LayerRow, compare_layers
from qcompiler_models import tiny
from quantized_by_others import HEAD, quantize

FORCED = Recipe.of({"base": "static-int8", "force": True, "verify": {"guard": False}})


def rows(found: LayerComparison) -> dict[str, LayerRow]:
    return {row.node: row for row in found.rows}


def test_a_model_is_equal_to_itself() -> None:
    found = compare_layers(tiny.build("mlp"), tiny.build("mlp"), tiny.feeds("mlp", 2))
    assert found.feeds == 2
    assert found.rows
    assert all(row.sqnr_db == math.inf and row.cosine == 1.0 for row in found.rows)
    assert found.first_jump is None


def test_a_weight_without_elements_has_no_factors() -> None:
    model = _two_layers({"w1": np.ones((16, 0)), "w2": np.ones((0, 16))})
    feeds = [{"x": np.ones((32, 16), np.float32)}]
    assert rows(compare_layers(model, model, feeds))["n1"].sqnr_db == math.inf


@pytest.mark.parametrize(
    ("name", "base"),
    [
        *((name, "static-int8") for name in ("mlp", "convnet", "transformer")),
        *((name, "dynamic-int8") for name in ("mlp", "transformer")),
    ],
)
def test_each_planned_layer_of_an_artifact_has_a_row_in_graph_order(name: str, base: str) -> None:
    feeds = tiny.feeds(name, 3)
    model = tiny.build(name)
    recipe = {"base": base, "force": True, "verify": {"guard": False}}
    artifact = qcompile(model, "cpu-vnni", recipe, feeds)
    found = compare_layers(model, artifact, feeds)
    planned = [item.node for item in artifact.plan if item.kernel and item.op != "Gather"]
    assert planned
    assert [row.node for row in found.rows if row.node in planned] == planned
    assert found.unmatched == 0
    for node in planned:
        row = rows(found)[node]
        assert 15.0 < row.sqnr_db < 90.0
        assert row.cosine > 0.98


def test_the_share_tells_weights_from_activations() -> None:
    rng = np.random.default_rng(0)
    fine = {"w1": rng.normal(size=(16, 16)), "w2": rng.normal(size=(16, 16))}
    model = _two_layers(fine)
    feeds = [{"x": rng.normal(size=(32, 16)).astype(np.float32)}]
    coarse = dict(fine)
    coarse["w2"] = np.rint(fine["w2"] / 0.5) * 0.5
    found = rows(compare_layers(model, _two_layers(coarse), feeds))
    assert found["n1"].sqnr_db == math.inf
    assert found["n2"].sqnr_db < 25.0
    assert found["n2"].weight_share == 1.0
    assert found["n2"].jump > 6.0
    assert compare_layers(model, _two_layers(coarse), feeds).first_jump == found["n2"]


def test_a_coarse_activation_is_told_by_its_share() -> None:
    rng = np.random.default_rng(0)
    fine = {"w1": rng.normal(size=(16, 16)), "w2": rng.normal(size=(16, 16))}
    model = _two_layers(fine)
    feeds = [{"x": rng.normal(size=(32, 16)).astype(np.float32)}]
    body = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
    coarse = _two_layers(fine, body, {"s": np.array(0.7, np.float32), "z": np.array(4, np.uint8)})
    found = rows(compare_layers(model, coarse, feeds))
    row = found["n1"]
    assert row.weight_share == 0.0
    assert row.activation_sqnr_db is not None
    assert row.sqnr_db == pytest.approx(row.activation_sqnr_db, abs=0.5)


def test_smoothing_is_no_error() -> None:
    model = tiny.build("transformer")
    feeds = tiny.feeds("transformer", 4)
    recipe = Recipe.of(
        {
            "base": "static-int8",
            "force": True,
            "smoothing": {"alpha": 0.8},
            "verify": {"guard": False},
        }
    )
    artifact = qcompile(model, "cpu-vnni", recipe, feeds)
    found = compare_layers(model, artifact, feeds)
    layers = [row for row in found.rows if row.weight_sqnr_db is not None]
    assert layers
    for row in layers:
        assert row.weight_sqnr_db is not None
        assert row.weight_sqnr_db > 25.0, row
        assert row.sqnr_db > 20.0, row


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_models_of_other_tools_are_matched(form: str, tmp_path: pathlib.Path) -> None:
    feeds = tiny.feeds("convnet", 3)
    model = tiny.build("convnet")
    path = quantize(model, feeds, tmp_path, form=form)
    found = compare_layers(tmp_path / "float.onnx", path, feeds)
    layers = [row for row in found.rows if row.op in ("Conv", "Gemm", "MatMul")]
    assert len(layers) >= 2
    assert all(row.sqnr_db > 10.0 for row in layers)


def test_models_that_have_nothing_in_common_are_refused() -> None:
    with pytest.raises(QcError) as caught:
        compare_layers(tiny.build("mlp"), tiny.build("convnet"), tiny.feeds("mlp", 1))
    assert caught.value.code in (Code.USAGE, Code.DOES_NOT_LOAD, Code.FLOAT_MODEL_FAILS)


def test_few_and_many_taps_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = tiny.feeds("convnet", 2)
    model = tiny.build("convnet")
    artifact = qcompile(model, "cpu-vnni", FORCED, feeds)
    whole = compare_layers(model, artifact, iter(feeds))
    monkeypatch.setattr("qcompiler.verify.layers._TAP_BYTES", 1)
    assert compare_layers(model, artifact, feeds) == whole


def test_rows_are_json_and_merge_with_sensitivity() -> None:
    row = LayerRow("a", "MatMul", math.inf, 1.0, 0.0)
    found = LayerComparison((row,), 1)
    assert json.loads(json.dumps(found.to_dict()))["layers"][0]["sqnr_db"] is None
    merged = merge_layers(found.report_rows(), [{"node": "a", "sensitivity": 2.0}, {"node": "b"}])
    assert merged[0]["sensitivity"] == 2.0
    assert merged[0]["cosine"] == 1.0
    assert [item["node"] for item in merged] == ["a", "b"]


def test_a_recipe_that_asks_for_layers_gets_them_in_the_report() -> None:
    feeds = tiny.feeds("mlp", 2)
    recipe = FORCED.model_copy(update={"verify": FORCED.verify.model_copy(update={"layers": True})})
    report = qcompile(tiny.build("mlp"), "cpu-vnni", recipe, feeds).report
    assert report.layers
    assert {"node", "sqnr_db", "cosine", "weight_sqnr_db"} <= set(report.layers[0])


@pytest.mark.parametrize("body", ["", "y = Abs(x)"])
def test_a_model_without_floating_point_nodes_has_no_rows(body: str) -> None:
    out = "y" if body else "x"
    text = f"{HEAD} g (int32[N,4] x) => (int32[N,4] {out}) {{ {body} }}"
    recipe = {"base": "static-int8", "verify": {"layers": True}}
    feeds = [{"x": np.ones((2, 4), np.int32)}] * 2
    report = qcompile(ir.from_onnx_text(text), "cpu-vnni", recipe, feeds).report
    assert report.layers == ()


def _two_layers(
    weights: dict[str, np.ndarray],
    body: str = "xd = Identity(x)",
    more: dict[str, np.ndarray] | None = None,
) -> ir.Model:
    lines = body.replace(") xd", ")\nxd")
    model = ir.from_onnx_text(
        f"{HEAD} g (float[32,16] x) => (float[32,16] y) {{\n{lines}\n"
        "h = MatMul(xd, w1)\ny = MatMul(h, w2)\n}"
    )
    constants = {**{k: v.astype(np.float32) for k, v in weights.items()}, **(more or {})}
    for value in {v for node in model.graph for v in node.inputs if v is not None}:
        array = constants.get(value.name or "")
        if array is not None:
            value.const_value = ir.tensor(array, name=value.name)
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
            model.graph.initializers[value.name or ""] = value
    for index, node in enumerate(n for n in model.graph if n.op_type == "MatMul"):
        node.name = f"n{index + 1}"
    return model


@pytest.mark.parametrize("weights", [{"bits": 3}, {"bits": 5}, {"format": "nf4"}])
def test_weights_that_are_unpacked_when_the_model_is_loaded_are_compared(weights: dict) -> None:
    recipe = {"base": "weight-int4", "weights": {"group_size": 16, **weights}}
    artifact = qcompile(tiny.build("mlp"), "cpu-vnni", recipe)
    found = compare_layers(tiny.build("mlp"), artifact, tiny.feeds("mlp", 2))
    assert found.unmatched == 0
    layers = [row for row in found.rows if row.op in ("MatMul", "Gemm")]
    assert layers
    assert all(5 < row.sqnr_db < 40 and row.weight_share == 1.0 for row in layers)


@pytest.mark.parametrize("weights", [{}, {"bits": 3}], ids=["4 bits", "unpacked"])
@pytest.mark.parametrize("prefill", ["int8", "int8-stored"])
def test_with_a_path_for_prompts_that_of_single_tokens_is_compared(
    prefill: str, weights: dict
) -> None:
    pytest.importorskip("torch")
    recipe = {
        "base": "weight-int4",
        "weights": {"group_size": 16, **weights},
        "verify": {"enabled": False},
    }
    model = decoder("llama")
    plain, both = (
        qcompile(model, "cpu-vnni", {**recipe, "prefill": path}) for path in (None, prefill)
    )
    ids = np.arange(20)[None] % 101
    feeds = [decoder_feed(ids, np.ones_like(ids), None, input_specs(plain.model))]
    found = compare_layers(model, both, feeds)
    assert found == compare_layers(model, plain, feeds)
    assert found.unmatched == 0
    assert sum(row.op == "MatMul" for row in found.rows) == 15


def test_padding_is_where_the_recipe_of_an_artifact_says() -> None:
    model, feeds = tiny.build("transformer"), tiny.feeds("transformer", 3)
    padded = {"base": "static-int8", "force": True, "calibration": {"mask": "mask"}}
    artifact = qcompile(model, "cpu-vnni", {**padded, "verify": {"enabled": False}}, feeds)
    told, found, everywhere = (
        compare_layers(model, artifact, feeds, mask=mask) for mask in ("mask", None, "")
    )
    assert found == told
    assert found != everywhere


def test_a_gemm_that_was_spelled_as_a_product_has_shares(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    text = f"""{HEAD} g (float[N,16] x) => (float[N,8] y) {{
      [fc] y = Gemm<transB = 1>(x, w, b)
    }}"""
    model = open_text(
        text,
        {
            "w": rng.normal(size=(8, 16)).astype(np.float32),
            "b": rng.normal(size=8).astype(np.float32),
        },
    )
    feeds = [{"x": rng.normal(size=(32, 16)).astype(np.float32)} for _ in range(3)]
    file = quantize(model, feeds, tmp_path)
    [row] = compare_layers(model, file, feeds).rows
    assert row.weight_share is not None
    assert 0.05 < row.weight_share < 0.95
    both = [row.weight_sqnr_db, row.activation_sqnr_db]
    assert all(item is not None and row.sqnr_db - 1 < item < 80 for item in both)


def test_layers_of_8_bit_floats_have_shares() -> None:
    feeds = tiny.feeds("mlp", 3)
    artifact = qcompile(tiny.build("mlp"), "generic-qdq", "static-fp8", feeds)
    layers = compare_layers(tiny.build("mlp"), artifact, feeds).rows
    shares = [row.weight_share for row in layers if row.op == "MatMul"]
    assert shares
    assert all(share is not None and 0.05 < share < 0.95 for share in shares)


def test_float_noise_has_no_share() -> None:
    feeds = tiny.feeds("mlp", 3)
    found = compare_layers(tiny.build("mlp"), qcompile(tiny.build("mlp"), recipe="float"), feeds)
    assert all(row.weight_share is None for row in found.rows)

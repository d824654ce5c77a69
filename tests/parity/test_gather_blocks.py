"""Embedding tables in blocks, alone and tied to the output layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import run_ort
from qcompiler.algorithms.data_free import rtn
from qcompiler.ir.edit import name_everything
from qcompiler.ir.lazy import Stored, View, lazy_tensor
from qcompiler.ir.provenance import mark_origins
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.schemes import QSpec
from qcompiler.targets.onnxruntime_cpu import CPU_AMX
from qcompiler_passes.apply.insert_qdq import InsertQdq
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.decide.place_precision import PlacePrecision
from qcompiler_passes.lower.to_ort import ToOrt
from qcompiler_passes.weights.quantize_weights import QuantizeWeights

ROWS, WIDTH = 300, 64
IDS = np.asarray([[0, 5, 299], [7, 7, 1]], np.int64)


def table() -> np.ndarray:
    return np.random.default_rng(3).standard_t(4, (ROWS, WIDTH)).astype(np.float32)


def tied_model(w: np.ndarray) -> ir.Model:
    """A table and, behind it, the product with the same table transposed."""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (int64[b,s] ids) => (float[b,s,{ROWS}] y, float[b,s,{WIDTH}] e)
        {{ e = Gather(t, ids) h = Tanh(e) y = MatMul(h, w) }}"""
    )
    stored = Stored("table", w.shape, lambda: w)
    values = {value.name: value for node in model.graph for value in node.inputs if value}
    for name, view in (("t", View(stored)), ("w", View(stored, transposed=True))):
        values[name].const_value = lazy_tensor(view, name)
        values[name].shape = ir.Shape(view.shape)
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(values[name])
    name_everything(model)
    for node, name in zip(model.graph, ("embed", "tanh", "head"), strict=True):
        node.name = name
    mark_origins(model)
    return model


def compiled(model: ir.Model, weights: dict, rules: list | None = None) -> tuple[ir.Model, State]:
    recipe = {"base": "w4-rtn", "weights": weights, "rules": rules or []}
    state = State(CPU_AMX, Recipe.of(recipe), CPU_AMX.form, sample={"ids": IDS}, ranges={})
    passes = [ObserveShapes(), PlacePrecision(), QuantizeWeights(), InsertQdq(), ToOrt()]
    run_pipeline(passes, model, state, check=True)
    return model, state


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tied_table_has_one_file_with_the_output_layer(bits: int, symmetric: bool) -> None:
    w = table()
    weights = {"bits": bits, "group_size": 32, "symmetric": symmetric}
    model, state = compiled(tied_model(w), weights)
    nodes = {node.op_type: node for node in model.graph}
    assert nodes["GatherBlockQuantized"].inputs[0] is nodes["MatMulNBits"].inputs[1]
    spec = QSpec.parse(f"u{bits}g32@0" + ("" if symmetric else "z"))
    expected = rtn(w.T, spec).dequantize().T
    logits, rows = run_ort(model, {"ids": IDS}, state.session)
    assert np.array_equal(rows, expected[IDS])
    wanted = np.tanh(expected[IDS]) @ expected.T
    assert np.abs(logits - wanted).max() <= 0.02 * np.abs(wanted).max()  # int8 activations
    large = [v for v in model.graph.initializers.values() if v.const_value.nbytes > ROWS * 8]
    assert sum(v.const_value.nbytes for v in large) <= ROWS * WIDTH * (bits + 2) // 8 + 9000


def test_a_rule_on_bits_stores_a_table_in_blocks() -> None:
    w = table()
    rules = [{"match": "head", "scheme": "float"}]
    rules.append({"match": "embed", "scheme": "weight", "bits": 4, "group_size": 16})
    model, state = compiled(tied_model(w), {"group_size": 32}, rules)
    ops = [node.op_type for node in model.graph]
    assert ops == ["GatherBlockQuantized", "Reshape", "Tanh", "MatMul"]
    rows = run_ort(model, {"ids": IDS}, state.session)[1]
    assert np.array_equal(rows, rtn(w, QSpec.parse("u4g16@1")).dequantize()[IDS])


def test_a_rule_gives_the_tied_layer_integer_zero_points_among_float_ones() -> None:
    weights = {"algorithm": "hqq", "group_size": 32, "symmetric": False, "zero_point": "float"}
    model, _ = compiled(tied_model(table()), weights)
    assert "GatherBlockQuantized" not in {node.op_type for node in model.graph}
    rule = {"match": "head", "zero_point": "int", "bits": 8}
    model, state = compiled(tied_model(table()), weights, [rule])
    nodes = {node.op_type: node for node in model.graph}
    assert nodes["GatherBlockQuantized"].inputs[0] is nodes["MatMulNBits"].inputs[1]
    _, rows = run_ort(model, {"ids": IDS}, state.session)
    assert np.abs(rows - table()[IDS]).max() <= np.ptp(table()) / 255


def test_products_of_four_bits_may_leave_activations_float() -> None:
    w = table()
    weights = {"bits": 4, "group_size": 32, "accuracy_level": 1}
    model, state = compiled(tied_model(w), weights)
    product = next(node for node in model.graph if node.op_type == "MatMulNBits")
    assert product.attributes.get_int("accuracy_level") == 1
    expected = rtn(w.T, QSpec.parse("u4g32@0")).dequantize().T
    logits, rows = run_ort(model, {"ids": IDS}, state.session)
    wanted = np.tanh(rows) @ expected.T
    assert np.abs(logits - wanted).max() <= 1e-5 * np.abs(wanted).max()

"""ONNX files whose output layer multiplies by the embedding table transposed."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler import Artifact, Target, load_target, qcompile
from qcompiler.diagnostics import Code
from qcompiler.ir.walk import op_name

ROWS, WIDTH = 4096, 64  # 1 MiB
TABLE = np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)
IDS = {"ids": np.array([[1, 7, 4095, 0, 7]], np.int64)}
USES = {
    "matmul": "w = Transpose <perm = [1, 0]> (t) y = MatMul(h, w)",
    "gemm": "z = Constant <value_ints = [0]> () f = Squeeze(h, z) y = Gemm <transB = 1> (f, t)",
}


def compiled(
    tmp_path: pathlib.Path, use: str, target: str | Target = "cpu-amx", **recipe: object
) -> Artifact:
    shape = f"1,S,{ROWS}" if use == "matmul" else f"S,{ROWS}"
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (int64[1,S] ids) => (float[{shape}] y) <float[{ROWS},{WIDTH}] t = {{0}}>
        {{ e = Gather(t, ids) h = Tanh(e) {USES[use]} }}"""
    )
    model.graph.initializers["t"].const_value = ir.tensor(TABLE, name="t")
    for node in model.graph:
        node.name = node.outputs[0].name
    path = tmp_path / "tied.onnx"
    ir.save(model, path)
    recipe = {"base": "w4-rtn", "weights": {"group_size": 32}, **recipe}
    recipe["verify"] = {"guard": False}
    data = [IDS] if recipe["base"] == "static-int8" or "distill" in recipe else None
    return qcompile(path, target, recipe, data, example_inputs=IDS, output=tmp_path / "out")


def size(tmp_path: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "out").glob("model.onnx*"))


@pytest.mark.parametrize("use", list(USES))
def test_one_table_of_few_bits_serves_both(tmp_path: pathlib.Path, use: str) -> None:
    artifact = compiled(tmp_path, use, rules=[{"match": "y", "bits": 8}])
    nodes = list(artifact.model.graph)
    gather = next(node for node in nodes if node.op_type == "GatherBlockQuantized")
    product = next(node for node in nodes if node.op_type == "MatMulNBits")
    assert product.inputs[1] is gather.inputs[0]
    assert size(tmp_path) < TABLE.nbytes / 4 * 1.25
    wanted = np.tanh(TABLE[IDS["ids"]]) @ TABLE.T
    found = artifact.run(IDS)["y"]
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_scales_of_a_table_that_serves_both_do_not_learn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    rules = [{"match": "y", "bits": 8}]
    artifact = compiled(tmp_path, "matmul", rules=rules, distill={"steps": 2})
    (kept,) = (item for item in artifact.report.diagnostics if item.code is Code.SCALES_KEPT)
    assert kept.where == "y/MatMul"
    assert "an embedding table shares them" in kept.message
    assert size(tmp_path) < TABLE.nbytes / 4 * 1.25


@pytest.mark.parametrize("names", [("y", "e"), ("y",)])
def test_what_stays_in_float_is_stored_once(tmp_path: pathlib.Path, names: tuple[str, ...]) -> None:
    rules = [{"match": name, "bits": 8, "scheme": "float"} for name in names]
    artifact = compiled(tmp_path, "matmul", rules=rules)
    assert sorted(map(op_name, artifact.model.graph)) == ["Gather", "MatMul", "Tanh", "Transpose"]
    assert size(tmp_path) < TABLE.nbytes * 1.05
    assert np.array_equal(onnx.numpy_helper.to_array(_table(tmp_path)), TABLE)
    wanted = np.tanh(TABLE[IDS["ids"]]) @ TABLE.T
    assert np.allclose(artifact.run(IDS)["y"], wanted, atol=1e-4)


def test_without_a_rule_the_product_stays_what_it_was(tmp_path: pathlib.Path) -> None:
    artifact = compiled(tmp_path, "matmul")
    assert [op_name(node) for node in artifact.model.graph][-2:] == ["Transpose", "MatMul"]
    assert Code.SHARED_WEIGHT in {item.code for item in artifact.report.diagnostics}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("base", ["static-int8", "dynamic-int8", "weight-int8"])
def test_in_bytes_both_are_quantized(tmp_path: pathlib.Path, use: str, base: str) -> None:
    artifact = compiled(tmp_path, use, base=base, force=True)
    kernels = {item.op: item.kernel for item in artifact.plan if item.op in ("Gather", "MatMul")}
    assert all(kernels.values()), kernels
    assert size(tmp_path) < TABLE.nbytes * (0.35 if base == "weight-int8" else 0.6)
    wanted = np.tanh(TABLE[IDS["ids"]]) @ TABLE.T
    found = artifact.run(IDS)["y"]
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize("by", ["rule", "target"])
def test_a_table_stays_in_float_with_the_product_that_shares_it(
    tmp_path: pathlib.Path, by: str
) -> None:
    target, rules = load_target("cpu-amx"), []
    if by == "rule":
        rules = [{"match": "y", "scheme": "float"}]
    else:
        rows = (
            dataclasses.replace(row, op=row.op.replace("MatMul", "Gemm")) for row in target.kernels
        )
        target = dataclasses.replace(target, kernels=tuple(rows))
    artifact = compiled(tmp_path, "matmul", target, base="dynamic-int8", rules=rules)
    verdicts = {item.op: item for item in artifact.plan}
    assert verdicts["Gather"].reason.code is Code.SHARED_WEIGHT
    assert "stays in float" in verdicts["Gather"].reason.message
    assert size(tmp_path) < TABLE.nbytes * 1.05


@pytest.mark.parametrize("by", ["target", "rule"])
def test_a_float_table_beside_integers_of_the_same_numbers_is_told(
    tmp_path: pathlib.Path, by: str
) -> None:
    rules = [] if by == "target" else [{"match": "e", "scheme": "float"}]
    target = "openvino" if by == "target" else "cpu-amx"
    artifact = compiled(tmp_path, "matmul", target, base="static-int8", rules=rules, force=True)
    (said,) = (
        item
        for item in artifact.report.diagnostics
        if item.code is Code.SHARED_WEIGHT and "bytes" in item.values
    )
    assert artifact.plan.nodes[said.where].op == "Gather"
    assert said.values["bytes"] == ROWS * WIDTH
    assert size(tmp_path) > TABLE.nbytes * 1.2


def _table(tmp_path: pathlib.Path) -> onnx.TensorProto:
    (table,) = (
        item
        for item in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
        if item.dims == [ROWS, WIDTH]
    )
    return table

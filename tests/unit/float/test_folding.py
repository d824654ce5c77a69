"""Limits and promises of the clean-up and folding passes that a golden text does not show."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code
from qcompiler.frontends import open_model
from qcompiler.guard import compile_float
from qcompiler.ir.provenance import origins
from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import generate_feed
from qcompiler_models import tiny
from qcompiler_passes.float.canonicalize_linear import CanonicalizeLinear
from qcompiler_passes.float.fold_batch_norm import FoldBatchNorm
from qcompiler_passes.float.fold_constants import FoldConstants
from qcompiler_passes.float.raise_opset import RaiseOpset
from qcompiler_passes.float.share_duplicates import ShareDuplicates
from rewriting import CLEANING, ops, parse, rewrite, state, worst

CLOSE = {"half": 2e-3}  # float16 has 11 bits
ROWS, WIDTH = 600, 64  # 150 KiB: more than what folding copies without asking


def tied(use: str) -> ir.Model:
    """An embedding table that the output layer reads transposed."""
    model = parse(
        f"""g (int64[N] ids) => (float[N,{ROWS}] y) <float[{ROWS},{WIDTH}] w = {{0}}>
        {{ x = Gather(w, ids) {use} }}"""
    )
    table = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(table, name="w")
    infer_shapes(model)
    return model


def bytes_of(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_all_passes_together_keep_what_tiny_models_compute(name: str) -> None:
    model = open_model(tiny.build(name)).model
    after = rewrite(model, *CLEANING)
    assert worst(model, after, generate_feed(model)) <= CLOSE.get(name, 1e-5)
    assert after.opset_imports[""] == 23


@pytest.mark.parametrize(
    "use", ["y = Gemm <transB = 1> (x, w)", "t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)"]
)
def test_a_tied_table_is_not_copied_and_the_reason_is_told(use: str) -> None:
    model = tied(use)
    given = dataclasses.replace(state(), recipe=Recipe.of("weight-int4"))
    after = rewrite(model, FoldConstants(), CanonicalizeLinear(), given=given)
    assert bytes_of(after) == bytes_of(model)
    assert [item.code for item in given.diagnostics] == [Code.SHARED_WEIGHT]
    assert given.diagnostics[0].values["weight"] == "w"


def test_the_float_form_has_the_table_once_under_recipes_that_would_quantize_it() -> None:
    model = tied("t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t)")
    given = dataclasses.replace(state(), recipe=Recipe.of("dynamic-int8"))
    assert bytes_of(compile_float(model, given)) == bytes_of(model)


def test_weights_that_a_converter_copied_are_tied_again() -> None:
    model = tied("y = Gemm <transB = 1> (x, w)")
    table = model.graph.initializers["w"].const_value
    twin = ir.Value(name="w2", const_value=ir.tensor(table.numpy().copy()))
    model.graph.register_initializer(twin)
    model.graph[1].replace_input_with(1, twin)
    assert bytes_of(rewrite(model, ShareDuplicates())) * 2 == bytes_of(model)


def test_negative_zero_is_not_zero() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <float[2] a = {0, 1}, float[2] b = {-0.0, 1}>
        { c = Div(x, a) d = Div(x, b) y = Add(c, d) }"""
    )
    model.graph.initializers["b"].const_value = ir.tensor(np.array([-0.0, 1], np.float32))
    assert len(rewrite(model, ShareDuplicates()).graph.initializers) == 2


@pytest.mark.parametrize(
    "grow",
    [
        "c = ConstantOfShape(big)",
        "s = Cast <to = 1> (one) c = Expand(s, big)",
        "s = Cast <to = 1> (one) c = Tile(s, big)",
        "z = Squeeze(big) o = Squeeze(one) r = Range(o, z, o) c = Cast <to = 1> (r)",
    ],
)
def test_what_would_grow_the_model_is_left_to_run_time(grow: str) -> None:
    model = parse(
        f"""g (float[1] x) => (float[M] y) <int64[1] big = {{1000000}}, int64[1] one = {{1}}>
        {{ {grow} y = Add(x, c) }}"""
    )
    assert bytes_of(rewrite(model, FoldConstants())) < 1000


def test_constants_are_folded_inside_bodies() -> None:
    model = parse(
        """g (bool c, float[2] x) => (float[2] y) <float a = {2}>
        { y = If(c) <then_branch = t () => (float[2] p) { s = Sqrt(a) p = Mul(x, s) },
                     else_branch = e () => (float[2] q) { q = Neg(x) }> }"""
    )
    branch = rewrite(model, FoldConstants()).graph[0].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Mul"]


def test_an_operator_that_cannot_come_along_keeps_the_opset_below_it() -> None:
    model = parse(
        """g (float[1,2,2] x) => (float[1,2,2] y) <float[1] s = {1}, float[1] b = {0}>
        { a = GroupNormalization <num_groups = 1> (x, s, b) y = Neg(a) }""",
        opset=18,
    )
    given = state()
    after = rewrite(model, RaiseOpset(), given=given)
    assert after.opset_imports[""] == 18
    assert [item.code for item in given.diagnostics] == [Code.OPSET_KEPT]
    assert "GroupNormalization" in given.diagnostics[0].message


def test_the_opset_stops_below_a_change_without_adapter() -> None:
    model = parse(
        """g (float[1,4,1] x) => (float[1,4,2] y)
        { y = DFT <axis = 1> (x) }""",
        opset=17,
    )
    given = state()
    after = rewrite(model, RaiseOpset(), given=given)
    assert after.opset_imports[""] == 19
    assert {item.code for item in given.diagnostics} == {Code.OPSET_KEPT, Code.OPSET_RAISED}


def test_a_newer_model_and_other_domains_are_left_alone() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu(x) }",
        opset=17,
        domains=', "com.microsoft" : 1',
    )
    after = rewrite(model, RaiseOpset())
    assert after.opset_imports == {"": 23, "com.microsoft": 1}
    assert rewrite(after, RaiseOpset(), given=state(opset=20)).opset_imports[""] == 23


def test_raising_keeps_names_modules_and_origins() -> None:
    model = open_model(tiny.build("transformer")).model
    names = {node.name for node in model.graph}
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer', 'x']"
    after = rewrite(model, RaiseOpset())
    assert names == {node.name for node in after.graph}
    assert all("pkg.torch.onnx.name_scopes" in node.metadata_props for node in after.graph)


def test_a_folded_layer_stands_for_all_it_took_in() -> None:
    model = open_model(tiny.build("convnet")).model
    after = rewrite(model, FoldBatchNorm())
    assert "BatchNormalization" not in ops(after)
    conv = next(node for node in after.graph if node.op_type == "Conv")
    assert len(origins(conv)) == 2


def test_a_shared_convolution_weight_is_not_folded() -> None:
    model = parse(
        """g (float[1,1,4] x) => (float[1,2,4] y)
        <float[2,1,1] w = {1, 2}, float[1,2,1] k = {2, 3}>
        { a = Conv(x, w) b = Conv(x, w) c = Mul(a, k) y = Add(b, c) }"""
    )
    assert ops(rewrite(model, FoldBatchNorm())) == ops(model)


def test_a_fold_that_overflows_half_precision_is_left() -> None:
    model = parse(
        """g (float16[1,1,4] x) => (float16[1,1,4] y)
        <float16[1,1,1] w = {0}, float16 k = {0}> { a = Conv(x, w) y = Mul(a, k) }"""
    )
    for name, array in (("w", np.full((1, 1, 1), 6e4, "float16")), ("k", np.float16(10))):
        model.graph.initializers[name].const_value = ir.tensor(np.asarray(array))
    assert ops(rewrite(model, FoldBatchNorm())) == ["Conv", "Mul"]


def test_the_passes_leave_the_given_tensors_alone() -> None:
    model = tiny.build("convnet")
    arrays = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}
    opened = open_model(model).model
    run_pipeline(CLEANING, opened, state(), check=False)
    for name, array in arrays.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)

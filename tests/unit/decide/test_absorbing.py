"""What kernels take in, and how values between them are stored."""

from __future__ import annotations

import dataclasses

import pytest

from placing import (
    COSTS,
    RESIDUAL,
    TOY,
    codes,
    graph,
    kernels,
    linear,
    model_of,
    planned,
)
from qcompiler.diagnostics import Code
from qcompiler.plan import Fixed, Own, Same, Verdict
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.onnxruntime_arm64 import CPU_ARM64

CONV = "float[1,2,4,4] x, float[2,2,3,3] W"


def test_a_row_of_more_inputs_than_the_node_has_does_not_fit() -> None:
    row = next(row for row in TOY.kernels if row.op == "MatMul")
    rows = (dataclasses.replace(row, id="sigmoid-static", op="Sigmoid"),)
    target = dataclasses.replace(TOY, kernels=rows, costs={})
    plan = planned(graph("[s] y = Sigmoid(x)"), target=target).plan
    assert codes(plan) == {"s": Code.CONDITION}
    assert plan.nodes["s"].reason is not None
    assert "takes 2 inputs, the node has 1" in plan.nodes["s"].reason.message


def test_a_relu_with_a_second_reader_before_it_is_not_absorbed() -> None:
    body = "[conv] a = Conv<pads=[1,1,1,1]>(x, W)  [relu] b = Relu(a)  [sum] y = Add(a, b)"
    plan = planned(graph(body, CONV, "float y"), {"force": True}).plan
    assert plan.nodes["relu"].verdict is Verdict.FLOAT
    assert {"a", "b"} <= plan.values.keys()


@pytest.mark.parametrize(("low", "absorbed"), [(0, True), (-1, True), (1, False)])
def test_a_clip_is_absorbed_only_when_zero_is_inside(low: float, absorbed: bool) -> None:
    body = f"""[conv] a = Conv<pads=[1,1,1,1]>(x, W)  lo = Constant<value_float={low}.0>()
        hi = Constant<value_float=6.0>()  [clip] b = Clip(a, lo, hi)
        [conv2] y = Conv<pads=[1,1,1,1]>(b, W)"""
    plan = planned(graph(body, CONV, "float y")).plan
    assert (plan.nodes["clip"].verdict is Verdict.FUSED) is absorbed


def test_a_value_inside_an_absorbed_chain_has_no_intent() -> None:
    plan = planned(model_of(RESIDUAL)).plan
    assert "a" not in plan.values
    assert "d" not in plan.values


def test_a_bias_of_another_shape_is_no_bias() -> None:
    weights = "float[16,16] W, float[8,16] B"
    body = "[fc] a = MatMul(x, W)  [add] y = Add(a, B)"
    plan = planned(linear(weights, body)).plan
    assert plan.nodes["add"].verdict is Verdict.FLOAT
    assert kernels(plan) == {"fc": "matmul-static"}


def test_a_rule_on_the_relu_alone_keeps_it_out_of_the_convolution() -> None:
    plan = planned(model_of(RESIDUAL), {"rules": [{"match": "relu1", "scheme": "float"}]}).plan
    assert codes(plan)["relu1"] is Code.KEPT_BY_RULE
    assert "a" in plan.values


def test_symmetric_activations_do_not_stand_for_a_relu() -> None:
    rows = []
    for row in CPU_ARM64.kernels:
        as_symmetric = {
            spec: dataclasses.replace(spec, symmetric=True)
            for spec in (*row.inputs, row.output)
            if spec is not None
        }
        rows.append(
            dataclasses.replace(
                row,
                inputs=tuple(as_symmetric.get(spec) for spec in row.inputs),  # type: ignore[arg-type]
                output=as_symmetric.get(row.output),  # type: ignore[arg-type]
            )
        )
    target = dataclasses.replace(CPU_ARM64, kernels=tuple(rows), costs=COSTS)
    assert planned(model_of(RESIDUAL), target=target).plan.nodes["relu1"].verdict is Verdict.FLOAT


def test_an_operator_of_fixed_range_needs_no_calibration() -> None:
    body = "[conv] a = Conv<pads=[1,1,1,1]>(x, W)  [s] b = Sigmoid(a)  [m] y = Mul(a, b)"
    plan = planned(graph(body, CONV, "float y"), {"force": True}).plan
    assert isinstance(plan.values["b"], Fixed)
    assert isinstance(plan.values["a"], Own)


def test_a_concat_of_a_unifying_target_owns_the_range_of_its_inputs() -> None:
    body = """[a] p = Conv<pads=[1,1,1,1]>(x, W)  [b] q = Conv<pads=[1,1,1,1]>(x, W)
        [t] r = Transpose<perm=[0,1,3,2]>(q)  [cat] c = Concat<axis=0>(p, r)
        [d] y = Conv<pads=[1,1,1,1]>(c, W)"""
    plan = planned(graph(body, CONV, "float y"), target=GENERIC_QDQ).plan
    assert plan.nodes["cat"].verdict is Verdict.CARRIED
    assert isinstance(plan.values["c"], Own)
    assert [plan.values[name] for name in "pqr"] == [Same("c")] * 3


def test_two_concats_of_one_value_cannot_both_share_its_parameters() -> None:
    body = """[a] p = Conv<pads=[1,1,1,1]>(x, W)  [b] q = Conv<pads=[1,1,1,1]>(x, W)
        [c] r = Conv<pads=[1,1,1,1]>(x, W)
        [cat1] u = Concat<axis=0>(p, q)  [cat2] v = Concat<axis=0>(q, r)
        [d] y = Conv<pads=[1,1,1,1]>(u, W)  [e] z = Conv<pads=[1,1,1,1]>(v, W)"""
    plan = planned(graph(body, CONV, "float y, float z"), target=GENERIC_QDQ).plan
    assert plan.nodes["cat1"].verdict is Verdict.CARRIED
    assert codes(plan)["cat2"] is Code.CONDITION
    assert isinstance(plan.values["r"], Own)


def test_weights_keep_to_the_bits_of_the_target() -> None:
    target = dataclasses.replace(TOY, weight_bits=7)
    assert str(planned(linear(), target=target).plan.nodes["fc"].inputs[1]) == "s8r7c@1"
    recipe = {"base": "weight-int8", "weights": {"bits": 8, "group_size": 16}}
    weight = planned(linear(), recipe, target).plan
    assert str(weight.nodes["fc"].inputs[1]) == "u8g16@0"

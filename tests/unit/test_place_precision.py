"""What the planner decides, why, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from placing import BLOCK, COSTS, RESIDUAL, TOY, model_of, planned
from qcompiler.diagnostics import Code, QcError
from qcompiler.plan import Fixed, Own, Plan, Same, Verdict
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.onnxruntime_arm64 import CPU_ARM64
from qcompiler.targets.onnxruntime_cpu import CPU_AMX
from qcompiler.targets.qnn_htp import QNN_HTP
from qcompiler.targets.schema import Cost, Form, Target
from qcompiler.targets.tensorrt import TENSORRT

Golden = Callable[[str, str], None]


def graph(body: str, inputs: str = "float[2,8,16] x", outputs: str = "float[2,8,16] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return model_of(text)


def linear(weights: str = "float[16,16] W", body: str = "[fc] y = MatMul(x, W)") -> ir.Model:
    return graph(body, f"float[2,8,16] x, {weights}", "float y")


def with_costs(**costs: Cost) -> Target:
    keys = {key.replace("__", "."): cost for key, cost in costs.items()}
    keys = {key.replace("_", "-"): cost for key, cost in keys.items()}
    return dataclasses.replace(TOY, costs={**COSTS, **keys})


def codes(plan: Plan) -> dict[str, Code]:
    return {d.node: d.reason.code for d in plan if d.reason is not None}


def kernels(plan: Plan) -> dict[str, str]:
    return {d.node: d.kernel for d in plan if d.verdict is Verdict.QUANTIZED}


def refused(code: Code, *args: Any, **kwargs: Any) -> QcError:
    with pytest.raises(QcError) as caught:
        planned(*args, **kwargs)
    assert caught.value.code is code
    return caught.value


# --- golden texts ---------------------------------------------------------------------------


def test_residual_net(golden: Golden) -> None:
    golden("place_precision/residual", f"{planned(model_of(RESIDUAL)).plan}\n")


def test_transformer_block(golden: Golden) -> None:
    golden("place_precision/block", f"{planned(model_of(BLOCK)).plan}\n")


def test_transformer_block_without_calibration(golden: Golden) -> None:
    state = planned(model_of(BLOCK), feeds=None)
    told = "\n".join(map(str, state.diagnostics))
    golden("place_precision/block_uncalibrated", f"{state.plan}\n{told}\n")


def test_rules_of_the_recipe(golden: Golden) -> None:
    recipe = {
        "rules": [
            {"op": "MatMul", "scheme": "dynamic", "force": True},
            {"match": "fc*", "scheme": "weight", "bits": 4, "group_size": 16, "force": True},
            {"match": "re:fc2.*", "scheme": "float", "reason": "accuracy"},
            {"match": "k", "kernel": "matmul-token"},
        ]
    }
    golden("place_precision/rules", f"{planned(model_of(BLOCK), recipe).plan}\n")


def test_a_target_without_costs_takes_all_it_has_rows_for(golden: Golden) -> None:
    golden("place_precision/generic", f"{planned(model_of(RESIDUAL), target=GENERIC_QDQ).plan}\n")


# --- cost -----------------------------------------------------------------------------------


def test_a_kernel_that_is_slower_than_float_does_not_pay() -> None:
    slow = Cost(per_mac_ns=((1, 1500),))
    target = with_costs(matmul_static=slow, matmul_static_u8=slow)
    recipe = {"schemes": ["static"]}
    decision = planned(linear(), recipe, target).plan.nodes["fc"]
    assert decision.reason is not None
    assert decision.reason.code is Code.DOES_NOT_PAY
    assert decision.reason.values["float_us"] == 4096
    assert decision.reason.values["kernel_us"] == 6144


def test_a_kernel_whose_conversions_cost_more_than_it_saves_has_float_neighbours() -> None:
    model = graph("[sum] y = Add(x, x)")
    plan = planned(model).plan
    assert codes(plan) == {"sum": Code.FLOAT_NEIGHBOURS}


def test_force_quantizes_what_does_not_pay_and_says_so() -> None:
    slow = Cost(per_mac_ns=((1, 1500),))
    target = with_costs(matmul_static=slow, matmul_static_u8=slow)
    plan = planned(linear(), {"schemes": ["static"], "force": True}, target).plan
    assert kernels(plan) == {"fc": "matmul-static"}
    assert codes(plan) == {"fc": Code.FORCED}
    assert plan.nodes["fc"].gain_us == -2048


def test_the_gain_is_that_of_the_kernel_without_conversions() -> None:
    assert planned(linear()).plan.nodes["fc"].gain_us == 3072


def test_one_quantization_at_run_time_is_shared_by_all_readers() -> None:
    # each saves 700 us; quantizing 256 elements costs 1000 us: together they pay, alone not
    costs = {
        "matmul_token": Cost(fixed_us=3396),
        "quantize_token": Cost(fixed_us=1000),
    }
    recipe = {"schemes": ["token"]}
    body = "[a] p = MatMul(x, W)  [b] q = MatMul(x, V)  [sum] y = Add(p, q)"
    pair = linear("float[16,16] W, float[16,16] V", body)
    assert set(kernels(planned(pair, recipe, with_costs(**costs)).plan)) == {"a", "b"}
    assert kernels(planned(linear(), recipe, with_costs(**costs)).plan) == {}


def test_a_row_without_cost_is_not_used() -> None:
    bare = dataclasses.replace(TOY, costs={k: c for k, c in COSTS.items() if "static" not in k})
    plan = planned(linear(), {"schemes": ["static"]}, bare).plan
    assert codes(plan) == {"fc": Code.CONDITION}


# --- absorbing ------------------------------------------------------------------------------


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


# --- stored values --------------------------------------------------------------------------


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


# --- weight only ----------------------------------------------------------------------------


WEIGHT4 = {"base": "weight-int4", "weights": {"bits": 4, "group_size": 16}}


def test_a_weight_only_recipe_is_applied_though_it_is_slower() -> None:
    plan = planned(linear(), WEIGHT4, feeds=None).plan
    assert str(plan.nodes["fc"].inputs[1]) == "u4g16@0"
    assert codes(plan) == {"fc": Code.FORCED}


def test_without_force_a_weight_only_scheme_must_pay() -> None:
    plan = planned(linear(), {**WEIGHT4, "force": False}, feeds=None).plan
    assert codes(plan) == {"fc": Code.DOES_NOT_PAY}


def test_a_zero_point_per_block_is_the_users_choice() -> None:
    recipe = {**WEIGHT4, "weights": {"bits": 2, "group_size": 32, "symmetric": False}}
    assert str(planned(linear(), recipe).plan.nodes["fc"].inputs[1]) == "u2g32@0z"


def test_a_ragged_last_block_is_fine() -> None:
    model = graph("[fc] y = MatMul(x, W)", "float[2,8,20] x, float[20,16] W", "float y")
    assert kernels(planned(model, WEIGHT4).plan) == {"fc": "matmul-weight"}


def test_blocks_that_would_not_make_the_weight_smaller_are_refused() -> None:
    model = graph("[fc] y = MatMul(x, W)", "float[2,8,3] x, float[3,16] W", "float y")
    plan = planned(model, "weight-int8").plan
    assert codes(plan) == {"fc": Code.GROUP_SIZE}
    assert plan.nodes["fc"].reason.hint  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("weights", "spec", "kernel"),
    [
        ({"bits": 4, "group_size": 48}, "u4g48@0", "matmul-weight"),
        ({"bits": 4, "group_size": -1}, "u4c@1", "matmul-weight"),
        ({"bits": 3, "group_size": 16}, "u4r3g16@0", "matmul-weight"),
        ({"bits": 1, "group_size": 16}, "b1g16@0", "matmul-weight"),
        ({"bits": 4, "group_size": 16, "format": "fp4"}, "fp4g16@0", "matmul-weight"),
        ({"bits": 4, "group_size": 20}, "u4g20@0", "matmul-weight-float"),
        (
            {"bits": 4, "group_size": 16, "symmetric": False, "zero_point": "float"},
            "u4g16@0f",
            "matmul-weight",
        ),
        ({"bits": 4, "group_size": 16, "format": "nf4"}, "nf4g16@0", "matmul-weight-float"),
        (
            {"bits": 4, "group_size": 16, "double_quant": {"bits": 6, "group_size": 8}},
            "u4g16@0/u8r6g8@0z",
            "matmul-weight",
        ),
    ],
)
def test_every_format_is_placed_on_the_kernel_it_can_have(
    weights: dict, spec: str, kernel: str
) -> None:
    state = planned(linear(), {**WEIGHT4, "weights": weights}, CPU_AMX)
    assert str(state.plan.nodes["fc"].inputs[1]) == spec
    assert kernels(state.plan) == {"fc": kernel}


@pytest.mark.parametrize(
    ("weights", "rule", "said"),
    [
        ({"format": "nf4"}, {"bits": 3}, "bits = 3, and nf4 has codes of 4 bits"),
        ({}, {"bits": 8, "format": "fp4"}, "bits = 8, and fp4 has codes of 4 bits"),
        ({}, {"zero_point": "float"}, "float zero points of symmetric groups"),
        (
            {"symmetric": False, "algorithm": "gptq"},
            {"zero_point": "float"},
            "which gptq does not find",
        ),
    ],
)
def test_a_rule_whose_weights_do_not_go_together_is_refused(
    weights: dict, rule: dict, said: str
) -> None:
    recipe = {
        **WEIGHT4,
        "weights": {"group_size": 16, **weights},
        "rules": [{"op": "MatMul", **rule}],
    }
    with pytest.raises(QcError, match=said) as caught:
        planned(linear(), recipe, CPU_AMX)
    assert caught.value.code is Code.RECIPE_KEY
    assert caught.value.diagnostic.hint


def test_the_plan_tells_what_a_format_without_kernel_costs() -> None:
    def told(**weights: object) -> dict[Code, dict]:
        recipe = {**WEIGHT4, "weights": {"group_size": 16, **weights}}
        state = planned(linear(), recipe, CPU_AMX)
        return {item.code: dict(item.values) for item in state.diagnostics}

    three = told(bits=3)[Code.UNPACKED_WEIGHTS]
    assert three["memory_bytes"] - three["file_bytes"] == 16 * 16 // 8
    scales = told(bits=4, double_quant={"bits": 8})[Code.UNPACKED_WEIGHTS]
    assert scales["memory_bytes"] == 16 * 16 // 2 + 4 * 16
    table = told(bits=4, format="nf4")[Code.FLOAT_WEIGHTS]
    assert table["memory_bytes"] == 16 * 16 * 4
    assert Code.UNPACKED_WEIGHTS not in told(bits=4)
    assert Code.FLOAT_ZERO_POINTS in told(bits=4, symmetric=False, zero_point="float")


def test_rules_change_bits_algorithm_and_format_of_some_nodes() -> None:
    rule = {"match": "fc", "bits": 8, "algorithm": "hqq", "group_size": -1, "symmetric": False}
    decision = planned(linear(), {**WEIGHT4, "rules": [rule]}, CPU_AMX).plan.nodes["fc"]
    assert (str(decision.inputs[1]), decision.algorithm) == ("u8c@1z", "hqq")


# --- embeddings -----------------------------------------------------------------------------


TABLE = "int64[2,8] x, float[20000,16] T"


def test_a_large_embedding_table_is_stored_in_int8_for_its_size() -> None:
    plan = planned(graph("[look] y = Gather(T, x)", TABLE), feeds=None).plan
    assert kernels(plan) == {"look": "gather-weight"}
    assert codes(plan) == {"look": Code.FOR_SIZE}
    assert [str(spec) for spec in plan.nodes["look"].inputs] == ["s8c@0", "None"]


def test_a_small_table_and_an_unwanted_one_stay_float() -> None:
    small = graph("[look] y = Gather(T, x)", "int64[2,8] x, float[50,16] T")
    assert codes(planned(small).plan) == {"look": Code.DOES_NOT_PAY}
    model = graph("[look] y = Gather(T, x)", TABLE)
    assert codes(planned(model, {"embeddings": False}).plan) == {"look": Code.NOT_SELECTED}
    assert codes(planned(model, "float").plan) == {"look": Code.NOT_SELECTED}
    weights = {"base": "weight-int4", "embeddings": False}
    assert codes(planned(model, weights).plan) == {"look": Code.NOT_SELECTED}
    asked = {**weights, "rules": [{"match": "look", "scheme": "weight"}]}
    assert kernels(planned(model, asked).plan) == {"look": "gather-weight"}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rule_on_bits_stores_a_small_table_in_them(bits: int) -> None:
    small = graph("[look] y = Gather(T, x)", "int64[2,8] x, float[50,16] T")
    asked = {**WEIGHT4, "rules": [{"match": "look", "bits": bits}]}
    plan = planned(small, asked).plan
    assert kernels(plan) == {"look": "gather-weight-blocks"}
    assert f"u{bits}g16" in str(plan.nodes["look"].inputs[0])


def test_a_rule_on_bits_wins_over_tables_in_float() -> None:
    model = graph("[look] y = Gather(T, x)", TABLE)
    rule = {"match": "look", "bits": 4, "group_size": 16}
    weights = {"base": "weight-int4", "embeddings": False, "rules": [rule]}
    state = planned(model, weights)
    assert kernels(state.plan) == {"look": "gather-weight-blocks"}
    assert not state.diagnostics


def test_a_table_that_cannot_have_the_bits_of_a_rule_is_told() -> None:
    model = graph("[look] y = Gather(T, x)", "int64[2,8] x, float[20000,24] T")
    rule = {"match": "look", "bits": 4, "group_size": 16}
    state = planned(model, {**WEIGHT4, "rules": [rule]})
    assert kernels(state.plan) == {"look": "gather-weight"}
    (told,) = state.diagnostics
    assert (told.code, told.where) == (Code.GROUP_SIZE, "look")
    assert "rows of 24" in told.message


@pytest.mark.parametrize(
    ("recipe", "rules", "told"),
    [
        ("weight-int4", [{"match": "fc", "bits": 8, "group_size": 16}], {}),
        (
            "weight-int4",
            [{"match": "fc", "bits": 8, "scheme": "float"}],
            {"rules[0].bits": "in float"},
        ),
        (
            "weight-int4",
            [{"match": "fc", "group_size": 1}],
            {"rules[0].group_size": "group size 1"},
        ),
        ("static-int8", [{"match": "fc", "bits": 4}], {"rules[0].bits": "'weight'"}),
        (
            "static-int8",
            [{"match": "fc", "bits": 4, "group_size": 16, "scheme": "weight", "force": True}],
            {},
        ),
        (
            "static-int8",
            [{"match": "fc", "bits": 4, "group_size": 16, "scheme": "weight"}],
            {"rules[0].bits, group_size": "cost"},
        ),
        ("static-int8", [{"op": "Relu", "algorithm": "hqq"}], {"rules[0].algorithm": "no layer"}),
        (
            "static-int8",
            [{"match": "fc", "scheme": "float"}, {"op": "MatMul"}],
            {"rules[0]": "later rules"},
        ),
    ],
)
def test_rules_that_change_no_weight_and_rules_behind_others_are_told(
    recipe: str, rules: list, told: dict[str, str]
) -> None:
    model = graph(
        "[fc] z = MatMul(x, W)  [act] y = Relu(z)", "float[8,16] x, float[16,16] W", "float[8,16] y"
    )
    state = planned(model, {"base": recipe, "rules": rules}, CPU_AMX)
    found = {d.where: d.message for d in state.diagnostics if d.code is Code.KEY_UNUSED}
    assert found.keys() == told.keys()
    for where, word in told.items():
        assert word in found[where]


def test_a_table_that_something_else_reads_stays_float() -> None:
    body = "[look] e = Gather(T, x)  [turn] t = Transpose(T)  [head] y = MatMul(e, t)"
    plan = planned(graph(body, TABLE, "float y")).plan
    assert codes(plan)["look"] is Code.SHARED_WEIGHT
    assert codes(plan)["head"] is Code.NOT_CONSTANT


# --- reasons --------------------------------------------------------------------------------


def test_reasons_name_what_is_in_the_way() -> None:
    body = """[shape] s = Shape(x)  [half] h = Div(s, s)  [same] e = Equal(x, x)
        [q] q0 = QuantizeLinear(x, S)  [dq] d = DequantizeLinear(q0, S)  [fc] m = MatMul(d, W)
        [fc2] n = MatMul(x, W)  [soft] t = Softmax(n)  [mix] y = Add(m, t)"""
    model = graph(
        body, "float[2,16] x, float[16,16] W, float[1] S", "float y, int64[2] h, bool[2,16] e"
    )
    found = codes(planned(model, "dynamic-int8").plan)
    assert found["shape"] is Code.SHAPE_COMPUTATION
    assert found["half"] is Code.SHAPE_COMPUTATION
    assert found["same"] is Code.WRONG_DTYPE
    assert found["dq"] is Code.ALREADY_QUANTIZED
    assert found["fc"] is Code.ALREADY_QUANTIZED
    assert found["soft"] is Code.NO_KERNEL
    assert found["mix"] is Code.NOT_SELECTED
    assert "fc2" not in found


def test_nodes_in_bodies_and_custom_domains_are_told_apart() -> None:
    from qcompiler_models.tiny import build

    model = build("control_flow")
    plan = planned(model).plan
    inside = [d for d in plan if d.reason and d.reason.code is Code.IN_SUBGRAPH]
    assert len(inside) == 7
    assert {d.op for d in plan if d not in inside} == {"If", "Loop"}


def test_every_removed_node_of_the_user_is_in_the_plan() -> None:
    from qcompiler.pipeline.contract import State
    from qcompiler.pipeline.run import run_pipeline
    from qcompiler.recipe import Recipe
    from qcompiler_passes.decide.observe_shapes import ObserveShapes
    from qcompiler_passes.decide.place_precision import PlacePrecision

    state = State(TOY, Recipe.of("dynamic-int8"), Form.ORT, removed={"bn": "fold-batch-norm"})
    run_pipeline([ObserveShapes(), PlacePrecision()], linear(), state)
    assert state.plan is not None
    assert [(d.node, d.verdict, d.into) for d in state.plan.removed] == [
        ("bn", Verdict.REMOVED, "fold-batch-norm")
    ]


def test_without_data_the_user_hears_what_calibration_would_buy() -> None:
    state = planned(model_of(RESIDUAL), feeds=None)
    (told,) = state.diagnostics
    assert told.code is Code.CALIBRATION_WOULD_HELP
    assert told.values["nodes"] == 3
    assert told.values["static_us"] < told.values["now_us"]
    assert state.plan is not None
    assert codes(state.plan)["conv1"] is Code.NO_CALIBRATION
    assert codes(state.plan)["relu1"] is Code.FLOAT_NEIGHBOURS


def test_without_data_a_node_that_static_would_not_help_has_another_reason() -> None:
    target = with_costs(conv_static=Cost(per_mac_ns=((1, 3000),)))
    state = planned(model_of(RESIDUAL), target=target, feeds=None)
    assert state.plan is not None
    assert codes(state.plan)["conv1"] is Code.DOES_NOT_PAY
    assert state.diagnostics == []


# --- rules ----------------------------------------------------------------------------------


def test_the_last_matching_rule_wins() -> None:
    rules = [{"op": "MatMul", "scheme": "float"}, {"match": "fc1", "scheme": "auto"}]
    plan = planned(model_of(BLOCK), {"rules": rules}).plan
    assert kernels(plan).keys() & {"q", "k", "fc1", "fc2"} == {"fc1"}
    plan = planned(model_of(BLOCK), {"rules": rules[::-1]}).plan
    assert not kernels(plan).keys() & {"q", "k", "fc1", "fc2"}


def test_a_rule_matches_modules_and_the_users_own_names() -> None:
    model = model_of(BLOCK)
    for node in model.graph:
        if str(node.name).startswith("fc"):
            node.metadata_props["qcompiler.module"] = f"layers.0.mlp.{node.name}"
    found = codes(planned(model, {"rules": [{"match": "layers.0.mlp", "scheme": "float"}]}).plan)
    assert [found[name] for name in ("fc1", "fc1_bias", "fc2")] == [Code.KEPT_BY_RULE] * 3
    rules = [{"match": "layers.[0-3].*", "scheme": "float"}]  # the first four blocks
    assert codes(planned(model, {"rules": rules}).plan)["fc2"] is Code.KEPT_BY_RULE
    model.graph.node("fc1").metadata_props["qcompiler.origin"] = '["/mlp/Gemm_1", "/mlp/Relu"]'
    found = codes(planned(model, {"rules": [{"match": "/mlp/G*", "scheme": "float"}]}).plan)
    assert found["fc1"] is Code.KEPT_BY_RULE


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ({"match": "fc3", "scheme": "float"}, "'fc2'"),
        ({"op": "MatMull", "scheme": "float"}, "'MatMul'"),
        ({"op": "Gemm", "scheme": "float"}, "rewritten to MatMul"),
        ({"match": "re:gelu_.*", "scheme": "float"}, "gelu"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(rule: dict[str, Any], hint: str) -> None:
    error = refused(Code.RULE_MATCHES_NOTHING, model_of(BLOCK), {"rules": [rule]})
    assert hint in error.diagnostic.hint


def test_a_regular_expression_that_does_not_parse_is_an_error() -> None:
    refused(Code.RECIPE_KEY, model_of(BLOCK), {"rules": [{"match": "re:(", "scheme": "float"}]})


def test_a_rule_the_target_cannot_follow_is_an_error_for_the_node_it_names() -> None:
    error = refused(
        Code.TARGET_CANNOT, model_of(BLOCK), {"rules": [{"match": "scores", "scheme": "token"}]}
    )
    assert error.diagnostic.values["because"] == Code.NOT_CONSTANT.id
    # by a wider rule that other nodes can follow, the node just gets its reason
    recipe = {"rules": [{"op": "MatMul", "scheme": "token"}]}
    assert codes(planned(model_of(BLOCK), recipe).plan)["scores"] is Code.NOT_CONSTANT


def test_a_demand_on_nodes_in_bodies_alone_is_an_error() -> None:
    from qcompiler_models.tiny import build

    recipe = {"rules": [{"op": "MatMul", "scheme": "token"}]}
    error = refused(Code.TARGET_CANNOT, build("control_flow"), recipe)
    assert error.diagnostic.values["because"] == Code.IN_SUBGRAPH.id


def test_a_kernel_the_target_lacks_is_an_error() -> None:
    error = refused(Code.TARGET_CANNOT, linear(), {"rules": [{"kernel": "matmul-statc"}]})
    assert "matmul-static" in error.diagnostic.hint


def test_a_rule_may_name_a_kernel() -> None:
    rule = {"match": "fc", "kernel": "matmul-dynamic", "force": True}
    assert kernels(planned(linear(), {"rules": [rule]}).plan) == {"fc": "matmul-dynamic"}


def test_recipes_beyond_the_target_are_errors() -> None:
    refused(Code.TARGET_CANNOT, linear(), "dynamic-int8", TENSORRT)
    refused(
        Code.TARGET_CANNOT, linear(), {"rules": [{"op": "MatMul", "scheme": "token"}]}, TENSORRT
    )


def test_static_without_data_is_an_error() -> None:
    refused(Code.NEEDS_CALIBRATION, linear(), "static-int8", feeds=None)
    rule = {"op": "MatMul", "scheme": "static"}
    refused(Code.NEEDS_CALIBRATION, linear(), {"rules": [rule]}, feeds=None)


def test_two_widths_of_activations_do_not_mix() -> None:
    rule = {"match": "conv1", "kernel": "conv-static-u16"}
    error = refused(Code.TARGET_CANNOT, model_of(RESIDUAL), {"rules": [rule]}, QNN_HTP)
    assert "u16tz" in error.diagnostic.message


# --- traps ----------------------------------------------------------------------------------


def test_a_blocking_trap_takes_the_kernel_away() -> None:
    (trap,) = [trap for trap in TOY.traps if trap.id == "row-scale-in-qdq"]
    always = dataclasses.replace(trap, condition="always")
    target = dataclasses.replace(TOY, traps=(always,))
    recipe = {"base": "dynamic-int8", "schemes": ["token"]}
    plan = planned(linear(), recipe, target).plan
    assert codes(plan) == {"fc": Code.TRAP}
    mended = dataclasses.replace(TOY, traps=(dataclasses.replace(always, blocks=False),))
    assert kernels(planned(linear(), recipe, mended).plan) == {"fc": "matmul-token"}


def test_what_the_recipe_lists_second_stands_in_for_the_first() -> None:
    (trap,) = [trap for trap in TOY.traps if trap.id == "row-scale-in-qdq"]
    without = dataclasses.replace(TOY, traps=(dataclasses.replace(trap, condition="always"),))
    state = planned(linear(), {"base": "dynamic-int8", "force": True}, without)
    assert kernels(state.plan) == {"fc": "matmul-dynamic"}
    assert [told.code for told in state.diagnostics] == [Code.SCALE_PER_TENSOR]


@pytest.mark.parametrize("order", [("token", "dynamic"), ("dynamic", "token")])
def test_of_two_schemes_at_run_time_the_first_is_taken_whatever_it_costs(order) -> None:
    cheap = dict.fromkeys(("matmul_token", "matmul_dynamic", "quantize_token"), Cost(0.1))
    for dear in ("matmul_token", "matmul_dynamic"):
        target = with_costs(**{**cheap, dear: Cost(0.2)})
        state = planned(linear(), {"schemes": list(order), "force": True}, target)
        assert kernels(state.plan) == {"fc": f"matmul-{order[0]}"}
        assert not state.diagnostics


# --- layouts --------------------------------------------------------------------------------

CHAIN = "[first] a = Conv<pads=[1,1,1,1]>(x, W1)  [second] y = Conv<pads=[1,1,1,1]>(a, W2)"


@pytest.mark.parametrize(("layout_ns", "integer"), [(0, {"second"}), (32_000, set())])
def test_an_image_between_a_float_and_an_integer_convolution_changes_its_layout(
    layout_ns: int, integer: set[str]
) -> None:
    # 576 multiply-accumulates: 432 us are saved, and 32 elements change their layout
    inputs = "float[1,2,4,4] x, float[2,2,3,3] W1, float[2,2,3,3] W2"
    target = with_costs(layout=Cost(per_element_ns=layout_ns))
    recipe = {"rules": [{"match": "first", "scheme": "float"}]}
    plan = planned(graph(CHAIN, inputs, "float y"), recipe, target).plan
    assert set(kernels(plan)) == integer


def test_only_what_a_convolution_gives_or_takes_has_a_layout_to_change() -> None:
    inputs = "float[1,2,4,4] x, float[2,2,3,3] W1, float[2,2,3,3] W2"
    target = with_costs(layout=Cost(per_element_ns=1_000_000))
    plan = planned(graph(CHAIN, inputs, "float y"), None, target).plan
    assert set(kernels(plan)) == {"first", "second"}


# --- one scale per weight -------------------------------------------------------------------


def weight_of(*lengths: float) -> str:
    """A Conv whose output channels have weights of these sizes."""
    rows = ", ".join(f"{size * factor:g}" for size in lengths for factor in (1.0, -0.37))
    return f"W = Constant<value = float[{len(lengths)},2,1,1] {{{rows}}}>()"


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ((1.0, 0.9, 0.011, 0.011), None),  # half of them is not most
        ((1.0, 0.011, 0.011, 0.011), Code.COARSE_WEIGHT),
        ((1.0, 0.0, 0.0, 0.0), None),  # zeros lose nothing
    ],
)
def test_channels_too_unlike_for_one_scale_stay_in_float(
    lengths: tuple[float, ...], told: Code | None
) -> None:
    model = graph(f"{weight_of(*lengths)}  [conv] y = Conv(x, W)", "float[1,2,8,8] x", "float y")
    recipe = {"base": "static-int8", "weights": {"granularity": "tensor"}}
    plan = planned(model, recipe).plan
    assert codes(plan).get("conv") is told
    assert ("conv" in kernels(plan)) is (told is None)
    forced = planned(model, {**recipe, "force": True}).plan
    assert "conv" in kernels(forced)
    assert "conv" in kernels(planned(model, "static-int8").plan)


@pytest.mark.parametrize("recipe", ["static-int8", "dynamic-int8"])
def test_a_product_of_constants_stays_in_float(recipe: str) -> None:
    model = graph(
        "[fc] y = MatMul(x, W) [fixed] z = MatMul(W, W)",
        "float[2,8,16] x, float[16,16] W",
        "float y, float z",
    )
    model.graph.initializers["W"].const_value = ir.tensor(np.eye(16, dtype=np.float32), name="W")
    plan = planned(model, {"base": recipe, "force": True}).plan
    assert set(kernels(plan)) == {"fc"}
    reason = plan.nodes["fixed"].reason
    assert reason is not None
    assert reason.code is Code.CONDITION
    assert "constants" in reason.message


@pytest.mark.parametrize(
    ("size", "quantized"), [(1e-38, False), (1e-42, False), (0, True), (1e-30, True)]
)
@pytest.mark.parametrize("recipe", ["static-int8", "weight-int4"])
def test_a_weight_that_no_scale_fits_stays_in_float(
    recipe: str, size: float, quantized: bool
) -> None:
    model = graph("[fc] y = MatMul(x, W)", "float[2,8,32] x, float[32,16] W", "float y")
    array = np.full((32, 16), size, np.float32)
    model.graph.initializers["W"].const_value = ir.tensor(array, name="W")
    plan = planned(model, {"base": recipe, "force": True}, CPU_AMX).plan
    assert bool(kernels(plan)) is quantized
    reason = plan.nodes["fc"].reason
    if not quantized:
        assert reason is not None
        assert reason.code is Code.CONDITION
        assert "no scale fits" in reason.message


# --- given plans ----------------------------------------------------------------------------


def edited(plan: Plan, node: str, **fields: Any) -> Plan:
    decision = dataclasses.replace(plan.nodes[node], **fields)
    return dataclasses.replace(plan, nodes={**plan.nodes, node: decision})


def test_a_given_plan_is_kept() -> None:
    plan = planned(model_of(RESIDUAL)).plan
    assert plan is not None
    again = Plan.from_dict(plan.to_dict())
    assert planned(model_of(RESIDUAL), plan=again).plan is again


def test_a_given_plan_that_does_not_fit_is_refused() -> None:
    plan = planned(model_of(RESIDUAL)).plan
    assert plan is not None
    model = model_of(RESIDUAL)
    without = dataclasses.replace(plan, nodes={k: d for k, d in plan.nodes.items() if k != "sum"})
    renamed = dataclasses.replace(
        plan, nodes={**plan.nodes, "sumn": dataclasses.replace(plan.nodes["sum"], node="sumn")}
    )
    values = dict(plan.values)
    del values["c"]
    for bad, where in (
        (without, "sum"),
        (renamed, "sumn"),
        (edited(plan, "conv1", kernel="conv-sttic"), "conv1"),
        (edited(plan, "conv1", kernel="add-static"), "conv1"),
        (edited(plan, "relu1", into="conv2"), "relu1"),
        (dataclasses.replace(plan, values=values), "c"),
        (dataclasses.replace(plan, values={**plan.values, "f": plan.values["e"]}), "turn"),
        (dataclasses.replace(plan, values={**plan.values, "zz": plan.values["e"]}), "zz"),
        (dataclasses.replace(plan, target="cpu-amx"), "plan"),
    ):
        assert refused(Code.BAD_PLAN, model, plan=bad).diagnostic.where == where
    refused(Code.NEEDS_CALIBRATION, model, plan=plan, feeds=None)


def test_the_recipes_named_for_a_type_force_it() -> None:
    from qcompiler.recipe import RECIPES

    forced = {name for name, recipe in RECIPES.items() if recipe.force}
    floats = {"static-fp8", "static-fp8-e5m2"}
    w4 = {name for name in RECIPES if name.startswith("w4-")}
    assert forced == {"weight-int8", "weight-int4", "static-a16w8", *floats, *w4}
    assert all(len(RECIPES[name].schemes) == 1 for name in forced)


def test_half_precision_is_floating_point() -> None:
    body = "[fc] y = MatMul(x, W)"
    model = graph(body, "float16[2,8,16] x, float16[16,16] W", "float16 y")
    weight = model.graph.initializers["W"]
    weight.const_value = ir.tensor(np.ones((16, 16), np.float16), name="W")
    assert kernels(planned(model).plan) == {"fc": "matmul-static"}

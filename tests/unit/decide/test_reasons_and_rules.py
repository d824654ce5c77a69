"""Why nodes stay in float, what recipes and given plans may ask."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from placing import (
    BLOCK,
    RESIDUAL,
    TOY,
    codes,
    graph,
    kernels,
    linear,
    model_of,
    planned,
    refused,
    with_costs,
)
from qcompiler.diagnostics import Code
from qcompiler.plan import Plan, Verdict
from qcompiler.targets.qnn_htp import QNN_HTP
from qcompiler.targets.schema import Cost, Form
from qcompiler.targets.tensorrt import TENSORRT


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
    assert [told.code for told in state.diagnostics] == [Code.NOTHING_QUANTIZED]


def test_a_recipe_that_finds_nothing_says_what_mostly_stood_in_the_way() -> None:
    [told] = planned(model_of(RESIDUAL), "weight-int8").diagnostics
    assert told.code is Code.NOTHING_QUANTIZED
    assert "2 of 2 nodes that may have weights are Conv kept in float by QC107" in told.message
    [told] = planned(graph("[n] y = Neg(x)", "float[2] x", "float[2] y"), "weight-int8").diagnostics
    assert told.message == "the model has no MatMul, Conv, Gemm or ConvTranspose"
    assert planned(model_of(RESIDUAL), "float").diagnostics == []


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

"""Weights that are stored in few bits, and those that are not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from placing import (
    codes,
    graph,
    kernels,
    linear,
    planned,
)
from qcompiler.diagnostics import Code, QcError
from qcompiler.targets.onnxruntime_cpu import CPU_AMX

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


def test_data_tell_nothing_of_a_table_which_plan_and_diagnostics_say() -> None:
    model = graph("[look] y = Gather(T, x)", TABLE)
    rule = {"match": "look", "bits": 4, "group_size": 16}
    state = planned(model, {"base": "w4-gptq", "rules": [rule]})
    assert state.plan.nodes["look"].algorithm == "hqq"
    assert not state.diagnostics
    (told,) = planned(model, {**WEIGHT4, "rules": [{**rule, "algorithm": "awq"}]}).diagnostics
    assert (told.code, told.where) == (Code.KEY_UNUSED, "rules[0].algorithm")


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

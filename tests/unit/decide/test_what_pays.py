"""What the planner computes in low precision: costs, traps, layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from placing import (
    BLOCK,
    COSTS,
    RESIDUAL,
    TOY,
    codes,
    graph,
    kernels,
    linear,
    model_of,
    planned,
    with_costs,
)
from qcompiler.diagnostics import Code
from qcompiler.targets.generic_qdq import GENERIC_QDQ
from qcompiler.targets.schema import Cost

Golden = Callable[[str, str], None]


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


CHAIN = "[first] a = Conv<pads=[1,1,1,1]>(x, W1)  [second] y = Conv<pads=[1,1,1,1]>(a, W2)"


@pytest.mark.parametrize(("layout_ns", "integer"), [(0, {"second"}), (100_000, set())])
def test_an_image_between_a_float_and_an_integer_convolution_changes_its_layout(
    layout_ns: int, integer: set[str]
) -> None:
    # 16 outputs' 4,608 multiply-accumulates: half a ms is saved; 32 elements change their layout
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

from __future__ import annotations

import dataclasses
import sys

import pytest

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.recipe import Recipe
from qcompiler.report.model import Report
from qcompiler.report.next_steps import next_steps
from qcompiler.schemes import QSpec

BARE = Report({"name": "m"}, "cpu-vnni", "auto", "ort")
INT8 = QSpec.parse("s8t")
EMPTY = Plan("cpu-vnni", "auto", "ort", {})


def said(*items: Diagnostic, **fields: object) -> str:
    steps = next_steps(dataclasses.replace(BARE, diagnostics=items, **fields), EMPTY)
    return "\n".join(f"{step.title}. {step.why} {step.how}" for step in steps)


def test_nothing_to_say_is_said() -> None:
    [step] = next_steps(BARE, EMPTY)
    assert step.title == "Nothing stands out"


def test_the_worst_nodes_are_named_as_rules_that_a_recipe_takes() -> None:
    name = 'layers.0["q"]'
    layers = tuple(
        {"node": node, "sensitivity": damage} for node, damage in (("a", 1.0), (name, 9.0))
    )
    low = Diagnostic(Code.LOW_FIDELITY, "y", "cosine 0.9")
    [step] = next_steps(dataclasses.replace(BARE, diagnostics=(low,), layers=layers), EMPTY)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    recipe = Recipe.of(tomllib.loads(step.how))
    assert [rule.match for rule in recipe.rules] == ['layers.0[[]"q"]', "a"]
    assert {rule.scheme for rule in recipe.rules} == {"float"}


def test_without_errors_per_node_the_advice_is_to_find_the_node() -> None:
    assert "Find the node that does the damage" in said(Diagnostic(Code.LOW_FIDELITY, "y", "bad"))


@pytest.mark.parametrize(("activation", "advice"), [(None, "w4-gptq"), (INT8, "dynamic-int8")])
def test_the_recipe_that_would_help_depends_on_what_is_quantized(
    activation: QSpec | None, advice: str
) -> None:
    node = NodeDecision("a", "MatMul", Verdict.QUANTIZED, "row", (activation, INT8))
    low = Diagnostic(Code.LOW_FIDELITY, "y", "bad")
    plan = Plan("cpu", "r", "ort", {"a": node})
    [step] = next_steps(dataclasses.replace(BARE, diagnostics=(low,)), plan)
    assert advice in step.how


def test_nodes_that_wait_for_ranges_ask_for_data() -> None:
    why = Diagnostic(Code.NO_CALIBRATION, "a", "no data")
    plan = Plan("cpu", "auto", "ort", {"a": NodeDecision("a", "Conv", Verdict.FLOAT, reason=why)})
    [step] = next_steps(BARE, plan)
    assert step.title == "Give calibration data"
    assert step.why.startswith("1 node is in float")
    assert step.codes == ("QC108",)


def test_outliers_are_told_only_where_fidelity_suffers() -> None:
    values = {"x": {"lo": 0, "hi": 9, "method": "minmax", "label": "layer x", "bulk": 0.05}}
    calibration = {"method": "auto", "values": values}
    poor, good = ({"output": "y", "cosine": cosine, "sqnr_db": 9.0} for cosine in (0.95, 0.999))
    assert "layer x" in said(calibration=calibration, fidelity=(poor,))
    assert "outliers" not in said(calibration=calibration, fidelity=(good,))


def test_float_operators_that_take_the_time_are_told_with_their_bound() -> None:
    why = Diagnostic(Code.NO_KERNEL, "s", "no kernel")
    nodes = {"s": NodeDecision("s", "Softmax", Verdict.FLOAT, reason=why)}
    profile = {"artifact": {"Softmax": 250.0, "MatMul": 750.0}, "nodes": {"s": 250.0}, "runs": 3}
    [step] = next_steps(
        dataclasses.replace(BARE, profile=profile), Plan("cpu", "auto", "ort", nodes)
    )
    assert step.title == "Softmax in float is 25% of the artifact's time"
    assert "at most 4.0 times" in step.why


def test_each_hint_is_said_once() -> None:
    items = [Diagnostic(Code.DEAD_TENSOR, f"v{i}", "was zero", "check the data") for i in range(3)]
    text = said(*items)
    assert text.count("Check the data") == 1
    assert "v0 and 2 more" in text

"""Convolutions at the input of a transformer stay in float, unless somebody asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from placing import model_of, planned
from qcompiler.diagnostics import Code
from qcompiler.plan import Plan, Verdict

EARS = """<ir_version: 10, opset_import: ["": 21]>
ears (float[1,8,16] x, float[16,8,3] W1, float[16,16,3] W2, float[14] GAIN, float[14,32] W3,
      float[32,32] W4) => (float[1,16,32] y) {
  [first] a = Conv<pads=[0,0]>(x, W1)
  [second] b = Conv<pads=[1,1]>(a, W2)
  [norm] n = NORMALIZED
  [linear] h = MatMul(n, W3)
  [last] y = MatMul(h, W4)
}
"""
TRANSFORMER = EARS.replace("NORMALIZED", "LayerNormalization<axis=-1>(b, GAIN)")


def plan_of(text: str, recipe: Mapping[str, Any] | None = None) -> Plan:
    plan = planned(model_of(text), {"base": "static-int8", **(recipe or {})}).plan
    assert plan is not None
    return plan


def test_only_the_convolution_at_the_input_stays() -> None:
    plan = plan_of(TRANSFORMER)
    first = plan.nodes["first"]
    assert first.verdict is Verdict.FLOAT
    assert first.reason is not None
    assert first.reason.code is Code.INPUT_LAYER
    assert "%x" in first.reason.message
    assert plan.nodes["second"].verdict is Verdict.QUANTIZED
    assert plan.nodes["linear"].verdict is Verdict.QUANTIZED


def test_a_net_without_normalizations_is_quantized_from_its_input_on() -> None:
    plan = plan_of(EARS.replace("NORMALIZED", "Mul(b, GAIN)"))
    assert plan.nodes["first"].verdict is Verdict.QUANTIZED


def test_a_convolution_net_with_an_attention_is_no_transformer() -> None:
    more = "[third] c = Conv<pads=[1,1]>(b, W2)\n  [norm]"
    text = TRANSFORMER.replace("[norm]", more).replace("(b, GAIN)", "(c, GAIN)")
    assert plan_of(text).nodes["first"].verdict is Verdict.QUANTIZED


@pytest.mark.parametrize(
    "recipe", [{"force": True}, {"rules": [{"match": "first", "scheme": "static"}]}]
)
def test_who_asks_for_it_gets_it(recipe: Mapping[str, Any]) -> None:
    assert plan_of(TRANSFORMER, recipe).nodes["first"].verdict is Verdict.QUANTIZED


def test_a_rule_that_keeps_it_in_float_is_the_reason() -> None:
    plan = plan_of(TRANSFORMER, {"rules": [{"match": "first", "scheme": "float"}]})
    reason = plan.nodes["first"].reason
    assert reason is not None
    assert reason.code is Code.KEPT_BY_RULE

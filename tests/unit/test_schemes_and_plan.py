from __future__ import annotations

import json

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.plan import Fixed, NodeDecision, Own, Plan, Same, Verdict
from qcompiler.schemes import Granularity, QSpec

DTYPES = [ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4]


@st.composite
def specs(draw: st.DrawFn) -> QSpec:
    granularity = draw(st.sampled_from(Granularity))
    placed = granularity in (Granularity.CHANNEL, Granularity.BLOCK)
    return QSpec(
        dtype=draw(st.sampled_from(DTYPES)),
        granularity=granularity,
        axis=draw(st.integers(-2, 3)) if placed else None,
        group_size=draw(st.sampled_from([16, 32, 128]))
        if granularity is Granularity.BLOCK
        else None,
        symmetric=draw(st.booleans()),
        dynamic=draw(st.booleans()),
        bits=draw(st.sampled_from([None, 7])),
    )


@given(specs())
def test_the_text_of_a_spec_reads_back(spec: QSpec) -> None:
    assert QSpec.parse(str(spec)) == spec


@given(specs())
def test_zero_is_among_the_integers_of_every_spec(spec: QSpec) -> None:
    assert spec.qmin <= 0 <= spec.qmax


def test_seven_bit_weights_use_half_the_range() -> None:
    assert (QSpec.parse("s8r7c@0").qmin, QSpec.parse("s8r7c@0").qmax) == (-63, 63)


@pytest.mark.parametrize("text", ["", "u8", "u9t", "s8c", "u4g@0", "u8t@1"])
def test_a_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"spec|granularity"):
        QSpec.parse(text)


def a_plan() -> Plan:
    u8, s8 = QSpec.parse("u8tz"), QSpec.parse("s8c@1")
    why = Diagnostic(Code.NO_KERNEL, "soft", "no low-precision Softmax", values={"us": 3})
    decisions = [
        NodeDecision("fc", "MatMul", Verdict.QUANTIZED, "matmul-static", (u8, s8), (None,)),
        NodeDecision("bias", "Add", Verdict.FUSED, into="fc", origin=("a", "b"), module="m.fc"),
        NodeDecision("soft", "Softmax", Verdict.FLOAT, reason=why, gain_us=1.5),
    ]
    values = {"x": Own(u8), "y": Same("x"), "p": Fixed(u8, 0.0, 1.0)}
    removed = (
        NodeDecision("c", "Constant", Verdict.REMOVED, into="fold-constants", origin=("c",)),
    )
    nodes = {decision.node: decision for decision in decisions}
    return Plan("cpu", "auto", "ort", nodes, values, removed)


def test_a_plan_survives_json() -> None:
    plan = a_plan()
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_prints_one_line_per_node_and_value(golden) -> None:
    golden("plan/three_nodes", str(a_plan()))


def test_shared_parameters_resolve_to_their_owner() -> None:
    plan = a_plan()
    assert plan.owner("y") == "x"
    assert plan.resolve("y") == Own(QSpec.parse("u8tz"))


def test_parameters_shared_in_a_circle_are_refused() -> None:
    plan = Plan("cpu", "auto", "ort", {}, {"a": Same("b"), "b": Same("a")})
    with pytest.raises(QcError, match="circle"):
        plan.owner("a")


def test_parameters_shared_with_nobody_are_refused() -> None:
    plan = Plan("cpu", "auto", "ort", {}, {"a": Same("bb"), "b": Own(QSpec.parse("u8tz"))})
    with pytest.raises(QcError, match="shares the parameters of %bb") as caught:
        plan.owner("a")
    assert caught.value.code is Code.BAD_PLAN


@pytest.mark.parametrize(("lo", "hi"), [(float("nan"), 1.0), (0.0, float("inf")), (3.0, 1.0)])
def test_a_range_that_is_none_is_refused(lo: float, hi: float) -> None:
    data = a_plan().to_dict()
    data["values"]["x"] = {"spec": "u8tz", "lo": lo, "hi": hi}
    with pytest.raises(QcError, match="is none") as caught:
        Plan.from_dict(data)
    assert caught.value.code is Code.BAD_PLAN


def test_a_float_verdict_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="without a reason"):
        NodeDecision("n", "Softmax", Verdict.FLOAT)


@pytest.mark.parametrize("data", [{}, {"format": 99}, {"format": 1, "nodes": 3}])
def test_what_is_no_plan_is_refused_with_a_code(data: dict) -> None:
    with pytest.raises(QcError) as error:
        Plan.from_dict(data)
    assert error.value.code is Code.BAD_PLAN

"""The recipe's ``activations`` and ``weights.granularity``: rows, plans, graphs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import constant
from qcompiler.plan import Fixed, Verdict
from qcompiler.targets.activations import activation_spec, form_for, offered_activations
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form, Target
from qcompiler_models import tiny


def compiled(name: str, target: str | Target, recipe: Any, **options: Any) -> Artifact:
    return qcompile(tiny.build(name), target, recipe, tiny.feeds(name, 8), **options)


def assert_same_outputs(name: str, one: Artifact, other: Artifact, atol: float) -> None:
    feed = tiny.feeds(name, 1, seed=5)[0]
    wanted, found = one.run(feed), other.run(feed)
    for key in wanted:
        np.testing.assert_allclose(found[key], wanted[key], atol=atol)


def kernels(artifact: Artifact) -> set[str]:
    return {item.kernel for item in artifact.plan if item.verdict is Verdict.QUANTIZED}


def conversions(artifact: Artifact) -> list[ir.Node]:
    return [node for node in artifact.model.graph if node.op_type == "QuantizeLinear"]


@pytest.mark.parametrize(
    ("target", "wanted", "spec"),
    [
        ("tensorrt", "auto", "s8t"),
        ("tensorrt", "fp8-e4m3", "e4m3t"),
        ("cuda", "auto", "e4m3t"),
        ("cuda", "fp8-e5m2", "e5m2t"),
        ("generic-qdq", "int16", "u16tz"),
        ("qnn-htp", "int8", "u8tz"),
        ("qnn-htp", "int16", "u16tz"),
        ("cpu-vnni", "auto", "u8tz"),
        ("cpu-vnni", "fp8-e4m3", "e4m3t"),
    ],
)
def test_the_first_row_of_the_wanted_type_decides(target: str, wanted: str, spec: str) -> None:
    assert str(activation_spec(load_target(target), Form.QDQ, wanted)) == spec


def test_what_a_target_lacks_is_not_offered() -> None:
    assert offered_activations(load_target("cuda"), Form.QDQ) == ("fp8-e4m3", "fp8-e5m2")
    assert offered_activations(load_target("cpu-vnni"), Form.ORT) == ("int8",)
    with pytest.raises(QcError, match="it has int8, fp8-e4m3") as error:
        compiled("mlp", "tensorrt", "static-a16w8")
    assert error.value.code is Code.TARGET_CANNOT
    with pytest.raises(QcError, match="activations of fp8-e4m3 in form ort"):
        compiled("mlp", "cpu-vnni", "static-fp8", form="ort")


def test_the_form_is_the_one_that_has_the_type() -> None:
    cpu = load_target("cpu-vnni")
    assert [form_for(cpu, name) for name in ("auto", "int8", "fp8-e4m3", "int16")] == [
        Form.ORT,
        Form.ORT,
        Form.QDQ,
        Form.ORT,
    ]


def test_a_cpu_runs_8_bit_floats_as_a_reference_and_says_so() -> None:
    artifact = compiled("mlp", "cpu-vnni", "static-fp8")
    assert kernels(artifact) == {"matmul-static-e4m3"}
    told = [item for item in artifact.report.diagnostics if item.code is Code.REFERENCE_ONLY]
    assert len(told) == 1
    assert told[0].values["nodes"] == 3
    assert all(item.gain_us is None for item in artifact.plan if item.kernel)
    assert artifact.report.fidelity[0]["cosine"] > 0.99


def test_without_force_a_reference_is_never_taken() -> None:
    for recipe in ("auto", {"base": "static-fp8", "force": False}):
        found = kernels(compiled("transformer", "cpu-vnni", recipe))
        assert not any(name.endswith(("e4m3", "e5m2")) for name in found)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_8_bit_floats_have_no_zero_point_and_leave_the_bias_in_float(name: str) -> None:
    artifact = compiled(name, "generic-qdq", "static-fp8")
    assert conversions(artifact)
    for node in artifact.model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert len(node.inputs) == 2
        if node.op_type == "Conv" and len(node.inputs) > 2:
            bias = constant(node.inputs[2])
            assert bias is not None
            assert bias.dtype == np.float32
    assert artifact.settings.entries["session.disable_quant_qdq"] == "1"


@pytest.mark.parametrize("opset", [19, 20])
def test_before_opset_21_the_zero_point_names_the_type(opset: int) -> None:
    target = dataclasses.replace(load_target("generic-qdq"), opset=opset)
    artifact = compiled("convnet", target, "static-fp8")
    assert artifact.model.graph.opset_imports[""] == opset
    assert all(len(node.inputs) == 3 for node in conversions(artifact))
    assert artifact.report.fidelity[0]["cosine"] > 0.99  # with a Relu before most of them


def test_8_bit_floats_below_opset_19_are_refused() -> None:
    target = dataclasses.replace(load_target("generic-qdq"), opset=17)
    with pytest.raises(QcError, match="needs opset 19, the model has 17") as error:
        compiled("convnet", target, "static-fp8")
    assert error.value.code is Code.NO_LOWERING


@pytest.mark.parametrize(("opset", "domain"), [(17, "com.microsoft"), (21, "")])
def test_16_bit_activations_are_in_microsofts_domain_before_opset_21(
    opset: int, domain: str
) -> None:
    target = dataclasses.replace(load_target("qnn-htp"), opset=opset)
    artifact = compiled("convnet", target, "static-a16w8")
    assert {node.domain for node in conversions(artifact)} == {domain}
    assert artifact.report.fidelity[0]["cosine"] > 0.999
    assert all(name.endswith("-u16") for name in kernels(artifact))


def test_what_another_target_decided_is_forgotten_when_its_artifact_comes_in() -> None:
    first = compiled("convnet", "qnn-htp", "static-a16w8")
    again = qcompile(first.model, "cpu-vnni", form="ort")  # which multiplies no 16-bit integers
    assert not kernels(again)
    assert all(item.reason or item.verdict is not Verdict.FLOAT for item in again.plan)
    assert_same_outputs("convnet", first, again, atol=1e-3)


@pytest.mark.parametrize("one", ["cpu-vnni", "cpu-arm64"])
@pytest.mark.parametrize("other", ["cpu-vnni", "cpu-arm64"])
def test_integers_of_the_other_sign_come_in(one: str, other: str) -> None:
    recipe = {"base": "static-int8", "force": True}
    first = compiled("convnet", one, recipe)  # whose image gets a fourth channel
    again = qcompile(first.model, other)
    assert kernels(again) == kernels(first)
    assert_same_outputs("convnet", first, again, atol=1e-5)


def test_8_bit_floats_come_in_again() -> None:
    first = compiled("mlp", "generic-qdq", "static-fp8")
    again = qcompile(first.model, "generic-qdq")
    assert kernels(again) == kernels(first)
    assert_same_outputs("mlp", first, again, atol=1e-5)


def test_fixed_ranges_may_depend_on_the_type() -> None:
    qnn = load_target("qnn-htp")
    u8, u16 = (activation_spec(qnn, Form.QDQ, name) for name in ("int8", "int16"))
    assert u8 is not None
    assert u16 is not None
    assert qnn.fixed_range("Sigmoid", u8) == (0.0, 1.0)
    lo, hi = qnn.fixed_range("Sigmoid", u16) or (0.0, 0.0)
    assert (hi - lo) / 65535 == 2.0**-16
    assert qnn.fixed_range("Softmax", u16) == (0.0, 1.0)
    assert qnn.fixed_range("Add", u16) is None


def test_a_fixed_tanh_of_16_bits_has_the_step_the_kernel_wants() -> None:
    artifact = compiled("transformer", "qnn-htp", "static-a16w8")
    fixed = [item for item in artifact.plan.values.values() if isinstance(item, Fixed)]
    assert all(item.spec.word == "u16" for item in fixed)


@pytest.mark.parametrize(
    ("target", "recipe"), [("cpu-vnni", "static-int8"), ("generic-qdq", "static-fp8")]
)
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_weights_may_have_one_scale(name: str, target: str, recipe: str) -> None:
    options = {"base": recipe, "force": True, "weights": {"granularity": "tensor"}}
    artifact = compiled(name, target, options)
    specs = [item.inputs[1] for item in artifact.plan if item.kernel and len(item.inputs) > 1]
    weights = [spec for spec in specs if spec is not None and spec.symmetric]
    assert weights
    assert all(spec.axis is None for spec in weights)
    assert artifact.report.fidelity[0]["cosine"] > 0.99


def test_a_scale_by_channel_is_refused_where_the_kernel_has_one() -> None:
    options = {"base": "static-int8", "weights": {"granularity": "channel"}}
    artifact = compiled("mlp", "qnn-htp", options)
    assert not kernels(artifact)
    reasons = {item.reason.message for item in artifact.plan if item.op == "MatMul" and item.reason}
    assert reasons == {"matmul-static takes one scale per weight (s8t)"}

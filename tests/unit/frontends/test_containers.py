"""Models with sequences and optionals inside, and as outputs."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

from qcompiler import Artifact, qcompile

TENSOR = "float[N,8]"
BODIES = {
    "sequence": "s = SequenceConstruct(h, h)  y = ConcatFromSequence<axis = 0>(s)",
    "same sequence": "s = SequenceConstruct(h, h)  t = Identity(s)  y = SequenceAt(t, zero)",
    "sequence of constants": "s = SequenceConstruct(zero, one)  k = SequenceAt(s, one) "
    "f = Cast<to = 1>(k)  y = Add(h, f)",
    "split": "s = SplitToSequence<axis = 1>(h, one)  y = SequenceAt(s, zero)",
    "optional": "o = Optional(h)  y = OptionalGetElement(o)",
    "grown in a loop": "e = SequenceEmpty()  s = Loop(three, yes, e) <body = b (int64 i, bool c, "
    "seq(float[N,8]) a) => (bool d, seq(float[N,8]) r) { d = Identity(c) r = SequenceInsert(a, h) }"
    ">  y = ConcatFromSequence<axis = 0>(s)",
}
OUTPUTS = {
    "sequence": (f"seq({TENSOR}) s", "s = SequenceConstruct(h, g)", ["s[0]", "s[1]"]),
    "optional": (f"optional({TENSOR}) s", "s = Optional(h)", ["s"]),
}
RECIPE = {"base": "static-int8", "force": True}


def model(outputs: str, body: str) -> onnx.ModelProto:
    text = f"""
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[N,16] x) => ({outputs})
    <int64 zero = {{0}}, int64 one = {{1}}, int64 three = {{3}}, bool yes = {{1}}> {{
        h = MatMul(x, w)
        {body}
    }}
    """
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return proto


def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(4, 16)).astype(np.float32)} for _ in range(3)]


@pytest.mark.parametrize("name", BODIES)
def test_containers_inside_a_model_stay_as_they_are(name: str, tmp_path: pathlib.Path) -> None:
    proto = model("float y", BODIES[name])
    folder = tmp_path / "out"
    artifact = qcompile(proto, "cpu-vnni", RECIPE, feeds(), output=folder)
    assert artifact.plan.count()["quantized"] == 1
    assert artifact.report.fidelity[0]["cosine"] > 0.99
    assert Artifact.load(folder).run(feeds()[0])["y"].size


@pytest.mark.parametrize("name", OUTPUTS)
def test_elements_of_an_output_are_compared_one_by_one(name: str) -> None:
    outputs, body, elements = OUTPUTS[name]
    proto = model(f"{TENSOR} h, {outputs}", f"g = Neg(h)  {body}")
    artifact = qcompile(proto, "cpu-vnni", {**RECIPE, "keep_float": 0}, feeds())
    compared = [item["output"] for item in artifact.report.fidelity]
    assert compared == ["h", *elements]
    assert all(item["cosine"] > 0.99 for item in artifact.report.fidelity)


@pytest.mark.parametrize("recipe", ["w4-teq", "w4-autoround-light"])
def test_blocks_that_give_sequences_learn_by_their_tensors(recipe: str) -> None:
    pytest.importorskip("torch")
    outputs, body, _ = OUTPUTS["sequence"]
    proto = model(f"{TENSOR} h, {outputs}", f"g = Neg(h)  {body}")
    artifact = qcompile(proto, "cpu-vnni", recipe, feeds())
    assert artifact.plan.count()["quantized"] == 1
    assert artifact.report.fidelity[0]["cosine"] > 0.95

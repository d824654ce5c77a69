from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompiler.analysis.dims import Dims
from qcompiler.ir.edit import Tape
from rewriting import parse


def _value(model: ir.Model, name: str) -> ir.Value:
    named = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return next(value for value in named if value.name == name)


def _shape(body: str, name: str = "y") -> tuple:
    model = parse(body)
    value = _value(model, name)
    value.shape = None  # what the text declares of outputs is not to help
    return Dims(model.graph).shape(value)


@pytest.mark.parametrize(
    ("inputs", "nodes", "wanted"),
    [
        ("float[B,S,8] x", "y = Relu(x)", ("B", "S", 8)),
        ("float[B,S,8] x, float[8,3] w", "y = MatMul(x, w)", ("B", "S", 3)),
        ("float[B,S,8] x", "y = Transpose <perm = [2, 0, 1]> (x)", (8, "B", "S")),
        ("float[B,1,S] x, float[S,1] z", "y = Add(x, z)", ("B", "S", "S")),
        ("float[B,S] x, float[8] z", "y = Mul(x, z)", ("B", 8)),
        ("float[B,S,8] x", "y = Reshape(x, minus)", ("B", "S", 2, 4)),
        ("float[B,S,8] x", "s = Shape(x) y = Expand(one, s)", ("B", "S", 8)),
        ("float[B,S,8] x", "y = Unsqueeze(x, axes)", ("B", 1, "S", 8)),
        ("float[B,S,8] x", "y, z = Split <axis = 2, num_outputs = 2> (x)", ("B", "S", 4)),
        ("float[B,S,8] x", "y = ReduceMean(x, last)", ("B", "S", 1)),
        ("float[B,6] x", "y = Slice(x, axes, three, axes)", ("B", 2)),
        ("float[B,6] x, float[B,3] z", "y = Concat <axis = 1> (x, z)", ("B", 9)),
        ("float[B,S,8] x", "y = Flatten <axis = 3> (x)", None),
    ],
)
def test_shapes_follow_operators(inputs: str, nodes: str, wanted: tuple | None) -> None:
    found = _shape(
        f"g ({inputs}) => (float[?] y) <int64[4] minus = {{0, 0, -1, 4}}, float one = {{1}},"
        f" int64[1] axes = {{1}}, int64[1] last = {{-1}}, int64[1] three = {{3}}> {{ {nodes} }}"
        if wanted is not None
        else f"g ({inputs}) => (float[?,?] y) {{ {nodes} }}"
    )
    if wanted is None:
        assert isinstance(found[0], tuple)  # the product of three sizes has no name
        assert found[1] == 1
    else:
        assert found == wanted


def test_sizes_that_meet_in_a_broadcast_without_proof_stay_unknown() -> None:
    found = _shape("g (float[A] x, float[B] z) => (float[?] y) { y = Add(x, z) }")
    assert found not in (("A",), ("B",))


def test_unnamed_sizes_are_equal_only_to_themselves() -> None:
    model = parse("g (float[?] x, float[?] z) => (float[?] y) { y = Relu(x) }")
    dims = Dims(model.graph)
    x, z = model.graph.inputs
    assert dims.shape(model.graph.outputs[0])[0] != dims.shape(z)[0]
    assert dims.shape(x) != dims.shape(z)


def test_the_exporters_expand_idiom_is_seen_through() -> None:
    # torch.onnx.export(dynamo=False): where(shape == -1, 1, shape)
    found = _shape(
        """g (float[B,S] x) => (float[?] y)
        <int64[1] minus = {-1}, int64 one_less = {-1}, float zero = {0}>
        { s = Shape(x) n = Shape(s) ones = ConstantOfShape <value = int64[1] {1}> (n)
          negative = Mul(ones, one_less) is = Equal(s, negative) t = Where(is, ones, s)
          y = Expand(zero, t) }"""
    )
    assert found == ("B", "S")


def test_numbers_are_the_elements_of_shape_arithmetic() -> None:
    model = parse(
        """g (float[B,S,8] x) => (int64[3] y)
        <int64 axis = {2}, int64 two = {2}, int64[1] zero = {0}, int64[1] one = {1}>
        { s = Shape(x) h = Gather(s, axis) half = Div(h, two) u = Unsqueeze(half, zero)
          first = Slice(s, zero, one) y = Concat <axis = 0> (first, u, one) }"""
    )
    assert Dims(model.graph).numbers(model.graph.outputs[0]) == ("B", 4, 1)


def test_a_shape_is_written_from_sources_once_each() -> None:
    model = parse("g (float[B,S,8] x) => (float[B,S,8] y) { y = Relu(x) }")
    tape = Tape(model.graph, "made")
    assert Dims(model.graph).write(tape, (1, 1, "S", "S")) is not None
    assert [node.op_type for node in tape.nodes] == ["Shape", "Concat"]
    assert Dims(model.graph).write(tape, ("unheard",)) is None


def test_a_deep_chain_does_not_exhaust_the_stack() -> None:
    chain = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(3000))
    model = parse(f"g (float[B] v0) => (float[B] y) {{ {chain} y = Relu(v3000) }}")
    assert Dims(model.graph).shape(model.graph.outputs[0]) == ("B",)

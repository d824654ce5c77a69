"""Repeated blocks by module path, and by the graph alone."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.analysis.blocks import repeated_blocks

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'


def residual_network(count: int, *, odd: int | None = None) -> ir.Model:
    """``count`` residual layers behind a stem, each with a mask from the side and its own scale."""
    lines, last = ["s = Relu(x)", "t = Neg(mask)"], "s"
    for i in range(count):
        op = "Tanh" if i == odd else "Sigmoid"
        lines += [
            f"a{i} = {op}({last})", f"b{i} = Mul(a{i}, t)", f"q{i} = Sqrt(p)",
            f"c{i} = Mul(b{i}, q{i})",
            f"y{i} = Add(c{i}, {last})",
        ]  # fmt: skip
        last = f"y{i}"
    body = "\n".join([*lines, f"z = Exp({last})"])
    model = ir.from_onnx_text(
        f"{HEAD} g (float[n] x, float[n] mask, float[n] p) => (float[n] z) {{ {body} }}"
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def names(model: ir.Model) -> dict[str, list[str | None]]:
    return {
        block.name: [node.name for node in block.nodes] for block in repeated_blocks(model.graph)
    }


def test_blocks_are_found_by_repetition_with_what_only_they_read() -> None:
    assert names(residual_network(3)) == {
        f"block.{i}": [f"a{i}", f"b{i}", f"q{i}", f"c{i}", f"y{i}"] for i in range(3)
    }


def test_what_all_blocks_read_and_the_stem_belong_to_none() -> None:
    inside = {name for nodes in names(residual_network(4)).values() for name in nodes}
    assert not {"s", "t", "z"} & inside


def test_a_layer_that_differs_ends_the_repetition() -> None:
    found = names(residual_network(5, odd=1))
    assert [nodes[0] for nodes in found.values()] == ["a2", "a3", "a4"]


def test_a_model_without_repetition_has_no_blocks() -> None:
    model = ir.from_onnx_text(f"{HEAD} g (float[n] x) => (float[n] y) {{ h = Relu(x) y = Exp(h) }}")
    assert repeated_blocks(model.graph) == ()


def test_module_paths_win_and_the_outermost_list_is_taken() -> None:
    model = residual_network(2)
    for node in model.graph:
        name = str(node.name)
        if name[-1].isdigit():
            node.metadata_props["qcompiler.module"] = f"net.layer.{name[-1]}.part.{len(name)}"
    assert list(names(model)) == ["net.layer.0", "net.layer.1"]
    assert names(model)["net.layer.1"] == ["a1", "b1", "q1", "c1", "y1"]


def test_layers_that_differ_by_a_constants_shape_are_not_the_same() -> None:
    model = ir.from_onnx_text(
        f"""{HEAD} g (float[n,2] x) => (float[n,3] y)
        <float[2,2] v = {{1,2,3,4}}, float[2,3] w = {{1,2,3,4,5,6}}>
        {{ a = MatMul(x, v) b = Relu(a) c = MatMul(b, w) y = Relu(c) }}"""
    )
    assert repeated_blocks(model.graph) == ()

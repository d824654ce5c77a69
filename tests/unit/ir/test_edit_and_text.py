from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import (
    Tape,
    add_initializer,
    collect_names,
    constant,
    fresh_name,
    name_everything,
    remove_dead,
    replace,
)
from qcompiler.ir.legality import violations
from qcompiler.ir.provenance import mark_origins, origins, user_nodes
from qcompiler.ir.text import model_text
from qcompiler.ir.walk import body_graphs

CHAIN = """
<ir_version: 9, opset_import: ["" : 18]>
agraph (float[N,4] x) => (float[N,4] y)
<float[4] b = {1, 2, 3, 4}, float[4] unused = {0, 0, 0, 0}>
{
    a = Add(x, b)
    r = Relu(a)
    y = Neg(r)
}
"""
BRANCH = """
<ir_version: 9, opset_import: ["" : 18]>
agraph (bool c, float[4] x) => (float[4] y)
{
    h = Relu(x)
    y = If(c) <then_branch = t () => (float[4] p) { p = Neg(h) },
               else_branch = e () => (float[4] q) { q = Abs(h) }>
}
"""


def opened(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    name_everything(model)
    mark_origins(model)
    return model


def test_the_text_shows_constants_and_is_stable(golden) -> None:
    model = opened(CHAIN)
    assert model_text(model) == model_text(model.clone())
    golden("ir/chain", model_text(model))


def test_bodies_are_printed_inside_their_node(golden) -> None:
    golden("ir/branch", model_text(opened(BRANCH)))


def test_a_replaced_output_keeps_the_users_name_and_origin() -> None:
    model = opened(CHAIN)
    graph = model.graph
    relu, neg = graph[1], graph[2]
    tape = Tape(graph, "fused")
    out = tape.op("Softplus", relu.inputs[0])
    replace(graph, [relu, neg], tape.nodes, {neg.outputs[0]: out})
    assert [value.name for value in graph.outputs] == ["y"]
    assert origins(graph[-1]) == ("Relu_1", "Neg_2")
    assert violations(model) == []


def test_replacing_an_output_by_an_input_leaves_both_names() -> None:
    model = opened(CHAIN)
    graph = model.graph
    replace(graph, list(graph), [], {graph[2].outputs[0]: graph.inputs[0]})
    assert [node.op_type for node in graph] == ["Identity"]
    assert (graph.inputs[0].name, graph.outputs[0].name) == ("x", "y")
    assert violations(model) == []


def test_a_node_that_is_still_read_is_not_removed() -> None:
    model = opened(CHAIN)
    graph = model.graph
    add, relu = graph[0], graph[1]
    tape = Tape(graph, "new")
    replace(graph, [add, relu], tape.nodes, {})
    assert [node.op_type for node in graph] == ["Add", "Relu", "Neg"]


def test_fresh_names_avoid_names_of_nested_bodies() -> None:
    model = opened(BRANCH)
    collect_names(model)
    assert fresh_name(model.graph, "p") == "p_1"
    assert fresh_name(model.graph, "p") == "p_2"


def test_values_read_only_by_a_body_are_alive() -> None:
    model = opened(BRANCH)
    assert not remove_dead(model)
    assert [node.op_type for node in model.graph] == ["Relu", "If"]


def test_a_dead_branch_takes_what_only_it_reads_along() -> None:
    model = opened(BRANCH)
    graph = model.graph
    relu, branch = graph
    graph.outputs[0] = relu.outputs[0]
    weight = add_initializer(graph, "w", np.zeros(4, np.float32))
    body = next(body_graphs(branch))
    body.insert_before(body[0], ir.node("Neg", [weight]))
    assert remove_dead(model)
    assert list(graph) == [relu]
    assert "w" not in graph.initializers
    assert not weight.uses()


def test_dead_constants_go() -> None:
    model = opened(CHAIN)
    assert remove_dead(model)
    assert set(model.graph.initializers) == {"b"}
    assert not remove_dead(model)


def test_constants_are_initializers_but_not_inputs() -> None:
    model = opened(CHAIN)
    np.testing.assert_array_equal(constant(model.graph.initializers["b"]), [1, 2, 3, 4])
    assert constant(model.graph.inputs[0]) is None
    assert constant(None) is None


def test_initializers_get_fresh_names_and_types() -> None:
    model = opened(CHAIN)
    value = add_initializer(model.graph, "b", np.zeros((2, 3), np.int8))
    assert value.name == "b_1"
    assert value.dtype == ir.DataType.INT8
    assert list(value.shape or ()) == [2, 3]


def test_unnamed_and_doubled_nodes_get_unique_names() -> None:
    model = ir.from_onnx_text(CHAIN)
    model.graph[0].name = model.graph[1].name = "twin"
    name_everything(model)
    assert [node.name for node in model.graph] == ["twin", "twin_1", "Neg_2"]


def test_a_use_before_its_definition_is_illegal() -> None:
    model = opened(CHAIN)
    graph = model.graph
    node = graph[0]
    graph.remove(node)
    graph.append(node)
    assert any("not produced before" in sentence for sentence in violations(model))


def test_a_domain_that_is_not_imported_is_illegal() -> None:
    model = opened(CHAIN)
    model.graph[1].domain = "strange"
    assert any("'strange'" in sentence for sentence in violations(model))


def test_origins_of_a_clone_are_those_of_the_model() -> None:
    model = opened(CHAIN)
    assert user_nodes(model.clone()) == {"Add_0", "Relu_1", "Neg_2"}

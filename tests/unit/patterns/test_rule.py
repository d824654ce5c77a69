from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import Tape
from qcompiler.ir.legality import violations
from qcompiler.ir.provenance import origins
from qcompiler.patterns import Match, Operators, Rule, Var, apply_rules, maybe, one_of
from rewriting import ops, parse

HALVED = """g (float[4] x) => (float[4] y) <float half = {0.5}> {
    a = Sigmoid(x)
    b = Mul(half, a)
    y = Relu(b)
}"""


class DropHalf(Rule):
    name = "drop-half"

    def pattern(self, op: Operators, x: Var):
        return op.Relu(op.Mul(op.Sigmoid(x), 0.5))

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        return tape.op("Tanh", m["x"])


def test_commutative_operators_match_in_both_orders() -> None:
    model = parse(HALVED)
    assert apply_rules(model.graph, [DropHalf()], "tested").modified
    assert ops(model) == ["Tanh"]


def test_rewriting_keeps_output_names_provenance_and_legality() -> None:
    model = parse(HALVED)
    names = [node.name for node in model.graph]
    apply_rules(model.graph, [DropHalf()], "tested")
    (node,) = model.graph
    assert node.outputs[0].name == "y"
    assert set(origins(node)) == set(names)
    assert node.metadata_props["qcompiler.pass"] == "tested"
    assert not model.graph.initializers
    assert violations(model) == []


def test_rewriting_twice_changes_nothing() -> None:
    model = parse(HALVED)
    apply_rules(model.graph, [DropHalf()], "tested")
    assert not apply_rules(model.graph, [DropHalf()], "tested").modified


def test_an_inner_result_that_something_else_reads_leaks() -> None:
    model = parse(
        "g (float[4] x) => (float[4] y, float[4] z) <float half = {0.5}>"
        "{ a = Sigmoid(x) b = Mul(a, half) y = Relu(b) z = Neg(a) }"
    )
    applied = apply_rules(model.graph, [DropHalf()], "tested")
    assert not applied.modified
    assert "is also read by" in applied.misses[0].reason


def test_an_inner_result_that_is_a_graph_output_leaks() -> None:
    model = parse(
        "g (float[4] x) => (float[4] y, float[4] a) <float half = {0.5}>"
        "{ a = Sigmoid(x) b = Mul(a, half) y = Relu(b) }"
    )
    applied = apply_rules(model.graph, [DropHalf()], "tested")
    assert not applied.modified
    assert "graph output" in applied.misses[0].reason


def test_an_inner_result_that_a_body_reads_leaks() -> None:
    model = parse(
        """g (float[4] x, bool c) => (float[4] y, float[4] z) <float half = {0.5}> {
        a = Sigmoid(x)
        b = Mul(a, half)
        y = Relu(b)
        z = If (c) <then_branch = t () => (float[4] p) { p = Neg(a) },
                    else_branch = e () => (float[4] q) { q = Abs(x) }>
    }"""
    )
    assert not apply_rules(model.graph, [DropHalf()], "tested").modified


class SharedSigmoid(Rule):
    name = "shared-sigmoid"

    def pattern(self, op: Operators, x: Var):
        return op.Relu(op.Sigmoid(x).may_be_shared())

    def rewrite(self, m: Match, tape: Tape) -> ir.Value:
        return tape.op("Tanh", m["x"])


def test_a_shared_term_may_be_read_by_others_and_then_stays() -> None:
    model = parse(
        "g (float[4] x) => (float[4] y, float[4] z) { a = Sigmoid(x) y = Relu(a) z = Neg(a) }"
    )
    apply_rules(model.graph, [SharedSigmoid()], "tested")
    assert sorted(ops(model)) == ["Neg", "Sigmoid", "Tanh"]
    tanh = next(node for node in model.graph if node.op_type == "Tanh")
    assert len(origins(tanh)) == 1  # the Sigmoid stands for itself


def test_a_shared_term_that_nobody_else_reads_goes() -> None:
    model = parse("g (float[4] x) => (float[4] y) { a = Sigmoid(x) y = Relu(a) }")
    apply_rules(model.graph, [SharedSigmoid()], "tested")
    assert ops(model) == ["Tanh"]
    assert len(origins(model.graph[0])) == 2


def test_a_variable_must_be_the_same_value_everywhere() -> None:
    class Square(Rule):
        name = "square"

        def pattern(self, op: Operators, x: Var):
            return op.Mul(x, x)

        def rewrite(self, m: Match, tape: Tape) -> ir.Value:
            return tape.op("Abs", m["x"])

    model = parse("g (float[4] x, float[4] w) => (float[4] y) { a = Mul(x, x) y = Mul(a, w) }")
    applied = apply_rules(model.graph, [Square()], "tested")
    assert applied.rewrites == {"square": 1}
    assert ops(model) == ["Abs", "Mul"]


def test_optional_inputs_match_present_and_absent() -> None:
    class AnyClip(Rule):
        name = "any-clip"
        seen: ClassVar[list[tuple[bool, bool]]] = []

        def pattern(self, op: Operators, x: Var, lo: Var, hi: Var):
            return op.Clip(x, maybe(lo), maybe(hi))

        def rewrite(self, m: Match, tape: Tape) -> ir.Value:
            self.seen.append(("lo" in m, "hi" in m))
            return tape.op("Abs", m["x"])

    model = parse(
        "g (float[4] x) => (float[4] y) <float zero = {0}>"
        '{ a = Clip(x) b = Clip(a, zero) y = Clip(b, "", zero) }'
    )
    rule = AnyClip()
    assert apply_rules(model.graph, [rule], "tested").rewrites == {"any-clip": 3}
    assert rule.seen == [(False, False), (True, False), (False, True)]


def test_alternatives_are_searched_with_backtracking() -> None:
    class Either(Rule):
        name = "either"

        def pattern(self, op: Operators, x: Var, s: Var):
            # the first alternative binds s to the wrong factor when the order is unlucky
            return op.Add(op.Mul(x, s), one_of(op.Neg(s), op.Abs(s)))

        def rewrite(self, m: Match, tape: Tape) -> ir.Value:
            return tape.op("Sub", m["x"], m["s"])

    model = parse(
        "g (float[4] p, float[4] q) => (float[4] y) { a = Mul(p, q) b = Abs(p) y = Add(b, a) }"
    )
    apply_rules(model.graph, [Either()], "tested")
    (node,) = model.graph
    assert [value.name for value in node.inputs] == ["q", "p"]


def test_where_gives_the_reason_of_the_near_miss() -> None:
    class Refused(DropHalf):
        name = "refused"

        def where(self, m: Match) -> str | None:
            return f"%{m['x'].name} is not to our taste"

    model = parse(HALVED)
    applied = apply_rules(model.graph, [Refused()], "tested")
    assert [miss.reason for miss in applied.misses] == ["%x is not to our taste"]
    assert ops(model) == ["Sigmoid", "Mul", "Relu"]


def test_the_deepest_failure_is_the_near_miss() -> None:
    model = parse(HALVED.replace("0.5", "0.25"))
    (miss,) = apply_rules(model.graph, [DropHalf()], "tested").misses
    assert miss.node == model.graph[-1].name
    assert miss.reason == "%half is not the constant 0.5"


def test_numbers_of_many_axes_do_not_match_because_they_raise_the_rank() -> None:
    model = parse(HALVED.replace("float half = {0.5}", "float[1, 1, 1] half = {0.5}"))
    assert not apply_rules(model.graph, [DropHalf()], "tested").modified


def test_attributes_are_wanted_values_or_predicates() -> None:
    class LastSoftmax(Rule):
        name = "last-softmax"

        def pattern(self, op: Operators, x: Var):
            return op.Softmax(op.Transpose(x, perm=[1, 0]), axis=lambda attr: attr is None)

        def rewrite(self, m: Match, tape: Tape) -> ir.Value:
            return tape.op("Neg", m["x"])

    body = (
        "g (float[2,2] x) => (float[2,2] y, float[2,2] z, float[2,2] w)"
        "{ a = Transpose <perm = [1, 0]> (x) y = Softmax(a) b = Transpose <perm = [0, 1]> (x)"
        "  z = Softmax(b) c = Transpose <perm = [1, 0]> (x) w = Softmax <axis = 0> (c) }"
    )
    applied = apply_rules(parse(body).graph, [LastSoftmax()], "tested")
    assert applied.rewrites == {"last-softmax": 1}


def test_a_rule_without_end_is_our_bug() -> None:
    class Endless(Rule):
        name = "endless"

        def pattern(self, op: Operators, x: Var):
            return op.Relu(x)

        def rewrite(self, m: Match, tape: Tape) -> ir.Value:
            return tape.op("Relu", m["x"])

    model = parse("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    with pytest.raises(QcError) as caught:
        apply_rules(model.graph, [Endless()], "tested", fuel=5)
    assert caught.value.code is Code.PASS_CONTRACT


def test_all_outputs_can_be_replaced() -> None:
    class Halves(Rule):
        name = "halves"

        def pattern(self, op: Operators, x: Var):
            return op.Split(op.Relu(x), num_outputs=2)

        def rewrite(self, m: Match, tape: Tape):
            return tape.op("Split", m["x"], num_outputs=2, axis=0, outputs=2)

    model = parse(
        "g (float[4] x) => (float[2] y, float[2] z)"
        "{ a = Relu(x) y, z = Split <num_outputs = 2> (a) }"
    )
    apply_rules(model.graph, [Halves()], "tested")
    assert ops(model) == ["Split"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]

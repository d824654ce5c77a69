"""Predicates: they hold, or say with the numbers why not."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code
from qcompiler.schemes import QSpec
from qcompiler.targets.conditions import CONDITIONS, Context, code_of, first_failure
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form

CPU = load_target("cpu-vnni")


def value(name, shape):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def weight(*shape):
    tensor = ir.tensor(np.zeros(shape, np.float32), name="w")
    return ir.Value(name="w", const_value=tensor, shape=ir.Shape(shape))


def context(form=Form.ORT, spec=None, **shapes):
    seen = {name: (np.dtype(np.float32), shape) for name, shape in shapes.items()}
    return Context(seen, CPU, form, QSpec.parse(spec) if spec else None)


def matmul(w, **attributes):
    return ir.node("MatMul", [value("x", ["n", 64]), w], attributes)


def why(name, node, where=None):
    return CONDITIONS[name](node, where or context())


def test_a_constant_weight_is_an_initializer_and_not_an_activation():
    assert why("constant-weight", matmul(weight(64, 8))) is None
    reason = why("constant-weight", matmul(value("y", [64, 8])))
    assert reason == "the weight (input 1) is computed at run time, wanted a constant"


def test_a_graph_input_with_a_default_is_no_constant():
    w = weight(64, 8)
    ir.Graph([w], [], nodes=[], name="g")
    assert why("constant-weight", matmul(w)) is not None


def test_a_constant_node_is_a_constant():
    made = ir.node("Constant", [], {"value": ir.tensor(np.zeros((4, 4), np.float32))})
    assert why("constant-weight", matmul(made.outputs[0])) is None


def test_ranks_are_told_with_what_was_found():
    assert why("weight-rank-2", matmul(weight(64, 8))) is None
    reason = why("weight-rank-2", matmul(weight(2, 64, 8)))
    assert reason == "the weight has rank 3, wanted 2"
    unknown = ir.node("MatMul", [value("x", [1]), ir.Value(name="y")])
    assert "unknown" in why("weight-rank-2", unknown)


def test_observed_shapes_decide_before_declared_ones():
    node = ir.node("AveragePool", [value("x", ["n", "c", "h", "w"])])
    assert why("activation-rank-4", node) is not None
    assert why("activation-rank-4", node, context(x=(1, 2, 3, 4))) is None


def test_same_shape_compares_observed_shapes():
    node = ir.node("Add", [value("a", ["n", 4]), value("b", ["n", 4])])
    assert why("same-shape", node, context(a=(2, 4), b=(2, 4))) is None
    reason = why("same-shape", node, context(a=(2, 4), b=(1, 4)))
    assert reason == "operands have shapes (2, 4) and (1, 4), wanted equal ones"
    assert "unknown" in why("same-shape", node)


@pytest.mark.parametrize(
    ("name", "op", "good", "bad", "says"),
    [
        ("no-dilation", "AveragePool", {"dilations": [1, 1]}, {"dilations": [2, 1]}, "[2, 1]"),
        ("floor-mode", "AveragePool", {}, {"ceil_mode": 1}, "ceil_mode is 1, wanted 0"),
        ("not-grouped", "Conv", {}, {"group": 2}, "group is 2, wanted 1"),
        ("resize-nearest", "Resize", {"mode": "nearest"}, {"mode": "linear"}, "'linear'"),
        ("gather-axis-0", "Gather", {"axis": 0}, {"axis": 1}, "axis is 1, wanted 0"),
    ],
)
def test_attributes_are_told_with_what_was_found(name, op, good, bad, says):
    x = value("x", [1, 2, 3, 4])
    assert why(name, ir.node(op, [x], good)) is None
    assert says in why(name, ir.node(op, [x], bad))


def test_a_batch_is_static_when_the_model_says_a_number():
    assert why("static-batch", ir.node("Relu", [value("x", [1, 3])])) is None
    assert "symbolic" in why("static-batch", ir.node("Relu", [value("x", ["n", 3])]))


def test_constants_are_no_activations():
    node = ir.node("Add", [value("a", [8]), weight(8)])
    assert why("activations-only", node) == "input 1 is a constant, wanted activations only"


def test_second_outputs_count_when_they_are_used():
    node = ir.node("MaxPool", [value("x", [1, 1, 4, 4])], num_outputs=2)
    assert why("one-output", node) is None
    ir.node("Relu", [node.outputs[0]])
    ir.node("Relu", [node.outputs[1]])
    assert why("one-output", node) == "2 outputs are used, wanted 1"


def test_group_sizes_of_nbits():
    node = matmul(weight(64, 8))
    assert why("nbits-group-size", node) is None  # the recipe has not spoken
    assert why("nbits-group-size", node, context(spec="u4g32@0")) is None
    assert "group size 48" in why("nbits-group-size", node, context(spec="u4g48@0"))
    # the operator pads the last group, DequantizeLinear does not
    assert why("nbits-group-size", node, context(spec="u4g128@0")) is None
    reason = why("nbits-group-size", node, context(Form.QDQ, spec="u4g128@0"))
    assert reason == "in-features 64 is not a multiple of group size 128"


def test_a_bias_behind_arms_the_row_scale_trap():
    node = matmul(weight(64, 8))
    assert why("followed-by-bias", node) is not None
    ir.node("Add", [node.outputs[0], weight(8)])
    assert why("followed-by-bias", node) is None
    assert why("bias-in-qdq", node) == "the form is ort"
    assert why("bias-in-qdq", node, context(Form.QDQ)) is None


def test_scales_along_the_wrong_axis_arm_their_traps():
    node = matmul(weight(64, 8))
    assert why("weight-axis-0", node, context(spec="s8c@0")) is None
    assert why("weight-axis-0", node, context(spec="s8c@1")) is not None


def test_sums_of_sums_are_walked_once():
    """Each reads the two before: paths from the first double with every second one."""
    x = value("x", ["n", 64])
    sums = [ir.node("Add", [x, x])]
    sums.append(ir.node("Add", [x, sums[0].outputs[0]]))
    for _ in range(100):
        sums.append(ir.node("Add", [item.outputs[0] for item in sums[-2:]]))
    assert why("no-normalization-behind", sums[0]) is None
    ir.node("Softmax", [sums[-1].outputs[0]])
    assert "normalized by Softmax" in why("no-normalization-behind", sums[0])


def test_the_first_failure_has_a_name_a_reason_and_a_code():
    row = CPU.kernel("matmul-static")
    assert first_failure(row, matmul(weight(64, 8)), context()) is None
    name, reason = first_failure(row, matmul(value("y", [64, 8])), context())
    assert name == "constant-weight"
    assert "wanted a constant" in reason
    assert code_of(name) is Code.NOT_CONSTANT
    assert code_of("nbits-group-size") is Code.GROUP_SIZE
    assert code_of("conv-rank") is Code.CONDITION

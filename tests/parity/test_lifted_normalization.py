"""Normalization and softmax of the lifted form give the reference's results."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from lifted_case import ATOL, EXAMPLES, RTOL, Case, agree, torch, with_fixed
from qcompiler.lift import lift
from qcompiler.lift.normalization import rms_norm


@given(st.data())
@EXAMPLES
def test_batch_norm(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.floats(*case.shape(2, 4))
    c = x.shape[1]
    params = [case.floats(c), case.floats(c), case.floats(c), case.floats(c, low=0.1)]
    agree(case, "BatchNormalization", [x, *params], {"epsilon": case.pick(1e-5, 1e-2)}, opset=15)


@given(st.data())
@EXAMPLES
def test_layer_norm(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape(2, 4)
    axis = case.axis(shape)
    inner = shape[axis:] if axis >= 0 else shape[axis % len(shape) :]
    bias = case.floats(*inner) if case.flag() else None
    attributes = {"axis": axis, "epsilon": case.pick(1e-5, 1e-2)}
    operands = [case.floats(*shape), case.floats(*inner), bias]
    # a single element is its own mean: the deviation is rounding noise over sqrt(epsilon)
    agree(case, "LayerNormalization", operands, attributes, outputs=case.pick(1, 3), tolerance=30)


@given(st.data())
@EXAMPLES
def test_rms_norm(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape(2, 4)
    axis = case.axis(shape)
    inner = shape[axis % len(shape) :]
    agree(case, "RMSNormalization", [case.floats(*shape), case.floats(*inner)], {"axis": axis})


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_norm_has_the_gradient_of_its_formula(axis: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(x.shape[axis:], dtype=torch.float64, requires_grad=True)

    def norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        double = int(ir.DataType.DOUBLE)
        return rms_norm(x, scale, axis=axis, epsilon=0.1, stash_type=double)

    assert torch.autograd.gradcheck(norm, (x, scale))


@given(st.data())
@EXAMPLES
def test_instance_and_group_norm(data: st.DataObject) -> None:
    case = Case(data.draw)
    groups, each = case.integer(1, 2), case.integer(1, 2)
    x = case.floats(2, groups * each, 3, 4)
    c = groups * each
    agree(case, "InstanceNormalization", [x, case.floats(c), case.floats(c)])
    agree(
        case,
        "GroupNormalization",
        [x, case.floats(c), case.floats(c)],
        {"num_groups": groups},
        opset=21,
    )


def test_group_norm_of_opset_18_has_a_scale_per_group() -> None:
    rng = np.random.default_rng(0)
    x, s, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 3), (2,), (2,)))
    with_fixed("GroupNormalization", [x, s, b], {"num_groups": 2}, opset=18)


@given(st.data())
@EXAMPLES
def test_response_and_norms(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.floats(2, 5, 3, 3)
    attributes = {"size": case.pick(1, 3, 5), "alpha": case.pick(1e-4, 0.1)}
    agree(case, "LRN", [x], attributes, by_runtime=True)  # the reference cuts windows at channel 2
    attributes = {"axis": case.axis(x.shape), "p": case.pick(1, 2)}
    agree(
        case, "LpNormalization", [x], attributes, by_runtime=True
    )  # the reference's p = 1 is signed
    agree(case, "MeanVarianceNormalization", [x], tolerance=10)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
@EXAMPLES
@given(st.data())
def test_softmax(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    agree(case, op_type, [case.floats(*shape)], {"axis": case.axis(shape)})


@pytest.mark.parametrize(
    ("op_type", "axis"), [("Softmax", None), ("Softmax", 2), ("LogSoftmax", 1)]
)
def test_old_softmax_is_over_all_axes_from_its_axis_on(op_type: str, axis: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    start = 1 if axis is None else axis
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["y"], **({} if axis is None else {"axis": axis}))],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    (found,) = lift(ir.from_proto(model).graph)(torch.from_numpy(x))
    rows = np.exp(x.reshape(math.prod(x.shape[:start]), -1))
    wanted = (rows / rows.sum(1, keepdims=True)).reshape(x.shape)
    wanted = np.log(wanted) if op_type == "LogSoftmax" else wanted
    np.testing.assert_allclose(found.numpy(), wanted, rtol=RTOL, atol=ATOL)

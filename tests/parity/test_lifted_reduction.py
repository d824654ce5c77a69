"""Reductions of the lifted form give the reference's results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifted_case import EXAMPLES, Case, agree, with_fixed

REDUCTIONS = ["Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]


@pytest.mark.parametrize("name", REDUCTIONS)
@EXAMPLES
@given(st.data())
def test_reduce(name: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    x = case.floats(*shape, low=0.1 if name == "LogSum" else -2.0, high=2.0)
    axes = list({axis % len(shape): axis for axis in case.axes(shape)}.values())
    keepdims = {"keepdims": case.flag()}
    old = keepdims | ({"axes": axes} if axes else {})
    agree(case, f"Reduce{name}", [x], old, opset=11)
    noop = {"noop_with_empty_axes": case.flag()} if axes else {}
    operand = np.array(axes, np.int64) if axes else None
    agree(case, f"Reduce{name}", [x, operand], keepdims | noop, opset=18)


def test_reduction_over_no_axes_may_be_nothing() -> None:
    x = np.ones((2, 3), np.float32)
    with_fixed("ReduceSum", [x, np.array([], np.int64)], {"noop_with_empty_axes": 1})


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@EXAMPLES
@given(st.data())
def test_arg(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    attributes = {
        "axis": case.axis(shape),
        "keepdims": case.flag(),
        "select_last_index": case.flag(),
    }
    agree(case, op_type, [case.tied(*shape)], attributes)


@given(st.data())
@EXAMPLES
def test_top_k(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    axis = case.axis(shape)
    x = case.rng.permutation(math.prod(shape)).reshape(shape).astype(np.float32)
    k = np.array([case.integer(1, shape[axis])], np.int64)
    agree(case, "TopK", [x, k], {"axis": axis, "largest": case.flag()}, outputs=2)


@given(st.data())
@EXAMPLES
def test_cumulative_sum(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    attributes = {"exclusive": case.flag(), "reverse": case.flag()}
    agree(case, "CumSum", [case.floats(*shape), np.array(case.axis(shape), np.int64)], attributes)

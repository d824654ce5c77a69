"""Elementwise operators of the lifted form give the reference's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from lifted_case import EXAMPLES, Case, agree, torch, with_fixed
from qcompiler.diagnostics import QcError
from qcompiler.lift import elementwise

UNARY = [
    "Neg",
    "Abs",
    "Sqrt",
    "Exp",
    "Log",
    "Reciprocal",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Erf",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Tanh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Sigmoid",
    "Relu",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Mish",
    "IsNaN",
    "Identity",
    "LeakyRelu",
    "Elu",
    "Celu",
    "Selu",
    "HardSigmoid",
    "ThresholdedRelu",
    "Shrink",
    "Gelu",
]
DOMAINS = {"Sqrt": (0.0, 4.0), "Log": (0.1, 4.0), "Reciprocal": (0.2, 3.0), "Acosh": (1.0, 4.0)}
DOMAINS |= dict.fromkeys(("Asin", "Acos", "Atanh"), (-0.95, 0.95)) | {"Tan": (-1.4, 1.4)}
ALPHA = {"LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "HardSigmoid", "Selu"}


@pytest.mark.parametrize("op_type", UNARY)
@EXAMPLES
@given(st.data())
def test_unary(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    low, high = DOMAINS.get(op_type, (-3.0, 3.0))
    # the reference's Softsign takes no scalar
    x = case.floats(*case.shape(int(op_type == "Softsign")), low=low, high=high)
    attributes: dict[str, Any] = {}
    if op_type in ALPHA and case.flag():
        attributes["alpha"] = case.pick(0.05, 0.5, 1.25)
    if op_type == "Gelu":
        attributes["approximate"] = case.pick("none", "tanh")
    if op_type == "Shrink":
        attributes = {"bias": case.pick(0.0, 0.25), "lambd": case.pick(0.5, 1.0)}
    if op_type in ("Floor", "Ceil", "Round", "Sign", "IsNaN"):
        x = np.round(x * 2) / 2
    agree(case, op_type, [x.astype(np.float32)], attributes)


BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Equal", "Greater", "Less"]


@pytest.mark.parametrize("op_type", BINARY)
@EXAMPLES
@given(st.data())
def test_binary_broadcasts(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    a, b = case.tied(*shape), case.tied(*case.broadcastable(shape))
    if op_type in ("Div", "Pow"):
        a, b = np.abs(a) + 0.5, b + 0.5
    if op_type != "PRelu" and case.flag():
        a, b = b, a
    agree(case, op_type, [a.astype(np.float32), b.astype(np.float32)])


@pytest.mark.parametrize("op_type", ["GreaterOrEqual", "LessOrEqual"])
@EXAMPLES
@given(st.data())
def test_comparison(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    agree(case, op_type, [case.tied(*shape), case.tied(*case.broadcastable(shape))])


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"])
@EXAMPLES
@given(st.data())
def test_integers(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    a = case.rng.integers(0, 9, shape)
    b = case.rng.integers(1, 5, case.broadcastable(shape))
    agree(case, op_type, [a, b])


@given(st.data())
@EXAMPLES
def test_mod(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    a = case.rng.integers(-9, 9, shape)
    agree(case, "Mod", [a, case.pick(-3, 3) * np.ones(shape, np.int64)], {"fmod": case.flag()})


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
@EXAMPLES
@given(st.data())
def test_logic(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    other = case.broadcastable(shape)
    agree(case, op_type, [case.tied(*shape) > 0, case.tied(*other) > 0])


def test_not() -> None:
    with_fixed("Not", [np.array([True, False])])


@pytest.mark.parametrize("op_type", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise(op_type: str) -> None:
    with_fixed(op_type, [np.arange(6, dtype=np.uint8), np.array([3], np.uint8)])


def test_bitwise_not() -> None:
    with_fixed("BitwiseNot", [np.arange(6, dtype=np.int32)])


@pytest.mark.parametrize("op_type", ["Max", "Min", "Sum", "Mean"])
@EXAMPLES
@given(st.data())
def test_variadic(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    count = case.integer(1, 3)
    agree(case, op_type, [case.floats(*shape) for _ in range(count)])


@given(st.data())
@EXAMPLES
def test_clip(data: st.DataObject) -> None:
    case = Case(data.draw)
    x, lo, hi = case.floats(*case.shape(0)), np.float32(-0.5), np.float32(1.0)
    if case.flag():
        agree(case, "Clip", [x], {"min": -0.5, "max": 1.0}, opset=6)
    else:
        agree(case, "Clip", [x, lo if case.flag() else None, hi if case.flag() else None])


@given(st.data())
@EXAMPLES
def test_where(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    a, b = case.floats(*shape), case.floats(*case.broadcastable(shape))
    agree(case, "Where", [case.tied(*case.broadcastable(shape)) > 0, a, b])


@given(st.data())
@EXAMPLES
def test_cast(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.tied(*case.shape(0)) * np.float32(1.5)
    to = case.pick(1, 6, 7, 9, 10, 11)
    agree(case, "Cast", [x], {"to": to})
    agree(case, "CastLike", [x, np.zeros(1, helper.tensor_dtype_to_np_dtype(to))])


@given(st.data())
@EXAMPLES
def test_is_infinite(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = np.array([1.0, np.inf, -np.inf, np.nan], np.float32)
    agree(case, "IsInf", [x], {"detect_negative": case.flag(), "detect_positive": case.flag()})


def test_dropout_is_nothing_in_inference() -> None:
    with_fixed("Dropout", [np.arange(3, dtype=np.float32)], outputs=2)


def test_dropout_in_training_is_refused() -> None:
    with pytest.raises(QcError, match="QC302"):
        elementwise.dropout(torch.ones(3), 0.5, True)

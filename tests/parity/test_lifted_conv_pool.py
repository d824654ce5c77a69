"""Convolution, pooling and Resize of the lifted form give the reference's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from lifted_case import EXAMPLES, Case, agree, torch, with_fixed
from qcompiler.lift import lift


def window(
    case: Case, rank: int, dilate: bool = True
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Attributes, kernel, and sizes that hold at least one window."""
    kernel = [case.integer(1, 3) for _ in range(rank)]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    dilations = [case.integer(1, 2) if dilate else 1 for _ in range(rank)]
    if dilate and case.flag():
        attributes["dilations"] = dilations
    if case.flag():
        attributes["strides"] = [case.integer(1, 3) for _ in range(rank)]
    if case.flag():
        attributes["pads"] = [case.integer(0, k - 1) for k in kernel * 2]
    elif case.flag():
        attributes["auto_pad"] = case.pick("SAME_UPPER", "SAME_LOWER", "VALID")
    sizes = [(k - 1) * d + case.integer(1, 4) for k, d in zip(kernel, dilations, strict=True)]
    return attributes, kernel, sizes


@given(st.data())
@settings(EXAMPLES, max_examples=80)
def test_conv(data: st.DataObject) -> None:
    case = Case(data.draw)
    attributes, kernel, sizes = window(case, case.integer(1, 2))
    group, each, out = case.integer(1, 2), case.integer(1, 2), case.integer(1, 2)
    attributes["group"] = group
    x, w = case.floats(2, group * each, *sizes), case.floats(group * out, each, *kernel)
    bias = case.floats(group * out) if case.flag() else None
    agree(case, "Conv", [x, w, bias], attributes)


@given(st.data())
@settings(EXAMPLES, max_examples=80)
def test_conv_transpose(data: st.DataObject) -> None:
    case = Case(data.draw)
    kernel = [case.integer(1, 3) for _ in range(2)]
    strides = [case.integer(1, 3) for _ in range(2)]
    group, each, out = case.integer(1, 2), case.integer(1, 2), case.integer(1, 2)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "group": group}
    if case.flag():
        attributes["pads"] = [case.integer(0, (k - 1) // 2) for k in kernel * 2]
    if case.flag():
        attributes["output_padding"] = [case.integer(0, s - 1) for s in strides]
    x, w = case.floats(2, group * each, 3, 4), case.floats(group * each, out, *kernel)
    bias = case.floats(group * out) if case.flag() else None
    # the reference errs for groups, and for dilations with padding
    agree(case, "ConvTranspose", [x, w, bias], attributes, by_runtime=True)


@given(st.data())
@settings(EXAMPLES, max_examples=80)
def test_max_pool(data: st.DataObject) -> None:
    case = Case(data.draw)
    attributes, _, sizes = window(case, 2)
    if "auto_pad" in attributes:  # the runtime forgets dilations there
        attributes.pop("dilations", None)
    if case.flag() and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    # the reference fails on unequal pads and on windows that ceil_mode cuts
    agree(case, "MaxPool", [case.floats(2, 2, *sizes)], attributes, opset=22, by_runtime=True)


@given(st.data())
@settings(EXAMPLES, max_examples=80)
def test_average_pool(data: st.DataObject) -> None:
    case = Case(data.draw)
    attributes, _, sizes = window(case, 2)
    if "auto_pad" in attributes:  # the runtime forgets dilations there
        attributes.pop("dilations", None)
    attributes["count_include_pad"] = case.flag()
    if case.flag() and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    # the reference fails on unequal pads and on windows that ceil_mode cuts
    agree(case, "AveragePool", [case.floats(2, 2, *sizes)], attributes, opset=22, by_runtime=True)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
@EXAMPLES
@given(st.data())
def test_global_pool(op_type: str, data: st.DataObject) -> None:
    case = Case(data.draw)
    # the reference drops the last axis of one-dimensional pools
    agree(case, op_type, [case.floats(*case.shape(3, 4))], by_runtime=True)


@given(st.data())
@settings(EXAMPLES, max_examples=80)
def test_resize(data: st.DataObject) -> None:
    case = Case(data.draw)
    mode = case.pick("nearest", "linear", "cubic")
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": case.pick(
            "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"
        ),
    }
    if mode == "nearest":
        attributes["nearest_mode"] = case.pick(
            "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"
        )
    if mode == "cubic":
        attributes |= {"cubic_coeff_a": case.pick(-0.75, -0.5), "exclude_outside": case.flag()}
    x = case.floats(1, 2, case.integer(2, 4), case.integer(2, 4))
    if case.flag():
        scales = np.array(
            [1.0, 1.0, case.pick(0.5, 1.0, 2.0), case.pick(0.5, 2.0, 2.5)], np.float32
        )
        agree(case, "Resize", [x, None, scales], attributes, opset=13, by_runtime=True)
    else:
        sizes = np.array([1, 2, case.integer(1, 6), case.integer(1, 6)], np.int64)
        agree(case, "Resize", [x, None, None, sizes], attributes, opset=13, by_runtime=True)


def test_resize_of_some_axes() -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    sizes = np.array([6, 2], np.int64)
    with_fixed("Resize", [x, None, None, sizes], {"axes": [2, 3], "mode": "linear"}, opset=18)


def test_resize_of_opset_10_and_upsample_take_the_floor() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    scales = np.array([1, 1, 1.5, 2], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "s"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(scales, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)])
    (found,) = lift(ir.from_proto(model).graph)(torch.from_numpy(x))
    rows, columns = np.floor(np.arange(4) / 1.5).astype(int), np.arange(8) // 2
    np.testing.assert_array_equal(found.numpy()[0, 0], x[0, 0][rows][:, columns])

"""Operators that move, select and index of the lifted form give the reference's results."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifted_case import EXAMPLES, Case, agree, with_fixed


@given(st.data())
@EXAMPLES
def test_shape_and_size(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.floats(*case.shape(0))
    agree(case, "Size", [x])
    attributes = {"start": case.integer(-3, 3), "end": case.integer(-3, 5)} if case.flag() else {}
    agree(case, "Shape", [x], attributes)


@given(st.data())
@EXAMPLES
def test_reshape(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape(2, 4)
    x = case.floats(*shape)
    wanted = case.pick([-1], [0, -1], [0, 0, -1], [*shape, 1], [shape[0], -1])
    if len(wanted) > len(shape) and wanted.count(0) > 1 and len(shape) < 2:
        wanted = [-1]
    agree(case, "Reshape", [x, np.array(wanted, np.int64)])


def test_reshape_with_allowzero() -> None:
    x, wanted = np.zeros((0, 3), np.float32), np.array([3, 0], np.int64)
    with_fixed("Reshape", [x, wanted], {"allowzero": 1})


@given(st.data())
@EXAMPLES
def test_flatten(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    agree(case, "Flatten", [case.floats(*shape)], {"axis": case.integer(-len(shape), len(shape))})


@given(st.data())
@EXAMPLES
def test_transpose(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    perm = data.draw(st.permutations(range(len(shape))))
    agree(case, "Transpose", [case.floats(*shape)], {"perm": perm} if case.flag() else {})


@pytest.mark.parametrize("opset", [11, 13])
@EXAMPLES
@given(st.data())
def test_squeeze_and_unsqueeze(opset: int, data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = list(case.shape(2, 4))
    axes = list({axis % len(shape): axis for axis in case.axes(tuple(shape), 1)}.values())
    for axis in axes:
        shape[axis] = 1
    wide = case.floats(*shape)
    x = wide.squeeze(tuple(axes))
    if opset == 11:
        axes = sorted(axis % len(shape) for axis in axes)  # all that the reference takes there
        agree(case, "Unsqueeze", [x], {"axes": axes}, opset=opset)
        agree(case, "Squeeze", [wide], {"axes": axes}, opset=opset)
    else:
        agree(case, "Unsqueeze", [x, np.array(axes, np.int64)], opset=opset)
        agree(case, "Squeeze", [wide, np.array(axes, np.int64)], opset=opset)
        agree(case, "Squeeze", [wide], opset=opset)


@given(st.data())
@EXAMPLES
def test_concat(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    axis = case.axis(shape)
    parts = []
    for _ in range(case.integer(1, 3)):
        own = list(shape)
        own[axis] = case.integer(1, 3)
        parts.append(case.floats(*own))
    agree(case, "Concat", parts, {"axis": axis})


@given(st.data())
@EXAMPLES
def test_split(data: st.DataObject) -> None:
    case = Case(data.draw)
    count = case.integer(1, 3)
    sizes = [case.integer(1, 3) for _ in range(count)]
    x = case.floats(2, sum(sizes), 3)
    agree(case, "Split", [x, np.array(sizes, np.int64)], {"axis": 1}, outputs=count)
    agree(case, "Split", [x], {"axis": 1, "split": sizes}, outputs=count, opset=11)
    if sum(sizes) >= count and -(-sum(sizes) // count) * (count - 1) < sum(sizes):
        agree(case, "Split", [x], {"axis": -2, "num_outputs": count}, outputs=count)


@given(st.data())
@EXAMPLES
def test_slice(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    x = case.floats(*shape)
    axes = list({axis % len(shape): axis for axis in case.axes(shape, 1)}.values())
    starts = [case.integer(-5, 5) for _ in axes]
    ends = [case.pick(-5, -1, 0, 1, 3, 2**40, -(2**40)) for _ in axes]
    steps = [case.pick(1, 2, -1, -2) for _ in axes]
    operands = [np.array(item, np.int64) for item in (starts, ends, axes, steps)]
    agree(case, "Slice", [x, *operands])
    forward = {"starts": starts, "ends": [case.pick(1, 3, 9) for _ in axes], "axes": axes}
    agree(case, "Slice", [x], forward, opset=9)


@given(st.data())
@EXAMPLES
def test_gather(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    axis = case.axis(shape)
    index = case.rng.integers(-shape[axis], shape[axis], case.shape(0, 2))
    agree(case, "Gather", [case.floats(*shape), np.asarray(index)], {"axis": axis}, data=0)


@given(st.data())
@EXAMPLES
def test_gather_and_scatter_elements(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    axis = case.axis(shape)
    x = case.floats(*shape)
    index = case.rng.permutation(shape[axis]).reshape(
        [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    )
    index = np.broadcast_to(index, shape).copy()
    index = index - shape[axis] * (index % 2)
    agree(case, "GatherElements", [x, index], {"axis": axis})
    reduction = case.pick("none", "add", "mul", "max", "min")
    attributes = {"axis": axis, "reduction": reduction}
    agree(case, "ScatterElements", [x, index, case.floats(*shape)], attributes)


@given(st.data())
@EXAMPLES
def test_gather_nd(data: st.DataObject) -> None:
    case = Case(data.draw)
    batch = case.integer(0, 1)
    x = case.floats(2, 3, 4, 2)
    depth = case.integer(1, 3 - batch)
    sizes = x.shape[batch : batch + depth]
    lead = (2,) * batch + case.shape(1, 2)
    index = np.stack([case.rng.integers(-size, size, lead) for size in sizes], -1)
    agree(case, "GatherND", [x, index], {"batch_dims": batch})


@given(st.data())
@EXAMPLES
def test_scatter_nd(data: st.DataObject) -> None:
    case = Case(data.draw)
    x, depth = case.floats(4, 3, 2), case.integer(1, 2)
    rows = case.rng.permutation(4)[:3]
    index = np.stack([rows, case.rng.integers(0, 3, 3)][:depth], -1)
    updates = case.floats(3, *x.shape[depth:])
    reduction = case.pick("none", "add", "mul", "max", "min")
    agree(case, "ScatterND", [x, index, updates], {"reduction": reduction})


@given(st.data())
@EXAMPLES
def test_expand_and_tile(data: st.DataObject) -> None:
    case = Case(data.draw)
    shape = case.shape()
    x = case.floats(*case.broadcastable(shape))
    agree(case, "Expand", [x, np.array(shape, np.int64)])
    y = case.floats(*shape)
    agree(case, "Tile", [y, np.array([case.integer(1, 2) for _ in shape], np.int64)])


@given(st.data())
@EXAMPLES
def test_pad(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.floats(3, 4, 3)
    mode = case.pick("constant", "reflect", "edge", "wrap")
    pads = [case.integer(0, 2) for _ in range(6)]
    value = np.float32(1.5) if mode == "constant" and case.flag() else None
    agree(case, "Pad", [x, np.array(pads, np.int64), value], {"mode": mode})
    axes = np.array([2, -2], np.int64)
    agree(case, "Pad", [x, np.array(pads[:4], np.int64), value, axes], {"mode": mode})
    if mode != "wrap":
        agree(case, "Pad", [x], {"mode": mode, "pads": pads, "value": 0.5}, opset=2)


def test_negative_pad_cuts() -> None:
    # the reference refuses negative widths
    with_fixed(
        "Pad", [np.arange(6, dtype=np.float32), np.array([-1, -2], np.int64)], by_runtime=True
    )


@given(st.data())
@EXAMPLES
def test_constant_of_shape_and_range(data: st.DataObject) -> None:
    case = Case(data.draw)
    value = case.pick(np.array([3], np.int64), np.array([0.5], np.float32))
    attributes = {"value": onnx.numpy_helper.from_array(value)} if case.flag() else {}
    agree(case, "ConstantOfShape", [np.array(case.shape(), np.int64)], attributes, data=0)
    operands = [case.integer(0, 3), case.integer(4, 9), case.integer(1, 3)]
    dtype = case.pick(np.int64, np.float32)
    agree(case, "Range", [np.array(item, dtype) for item in operands])


@given(st.data())
@EXAMPLES
def test_space_and_depth(data: st.DataObject) -> None:
    case = Case(data.draw)
    b = case.integer(1, 3)
    x = case.floats(2, 2 * b * b, 2 * b, b)
    agree(case, "DepthToSpace", [x], {"blocksize": b, "mode": case.pick("DCR", "CRD")})
    agree(case, "SpaceToDepth", [x], {"blocksize": b})


@given(st.data())
@EXAMPLES
def test_triangle(data: st.DataObject) -> None:
    case = Case(data.draw)
    x = case.floats(*case.shape(2, 3))
    k = np.array(case.integer(-2, 2), np.int64) if case.flag() else None
    agree(case, "Trilu", [x, k], {"upper": case.flag()})


@given(st.data())
@EXAMPLES
def test_one_hot_and_non_zero(data: st.DataObject) -> None:
    case = Case(data.draw)
    index = case.rng.integers(-3, 3, case.shape(1, 2))
    operands = [index, np.array(3, np.int64), np.array([0.0, 2.0], np.float32)]
    agree(case, "OneHot", operands, {"axis": case.pick(-1, 0, 1)})
    agree(case, "NonZero", [case.tied(*case.shape(1, 3))])

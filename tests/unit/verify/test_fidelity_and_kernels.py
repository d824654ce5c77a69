from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.recipe import VerifyOptions
from qcompiler.report.model import Report
from qcompiler.targets.schema import Form, Kernel, Scheme, Target
from qcompiler.verify.fidelity import OutputFidelity, compare_outputs, judge
from qcompiler.verify.kernels import prove


@dataclasses.dataclass(frozen=True)
class Seen:
    name: str
    op: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def kernel(id: str, runtime_op: str) -> Kernel:
    return Kernel(id, "MatMul", Scheme.STATIC, (None, None), None, runtime_op, "test")


TARGET = Target(
    "t",
    "onnxruntime",
    "test",
    Form.ORT,
    21,
    (kernel("mm", "com.microsoft:MatMulIntegerToFloat"), kernel("conv", "QLinearConv")),
)


def a_plan(form: str = "ort") -> Plan:
    nodes = [
        NodeDecision("fc", "MatMul", Verdict.QUANTIZED, "mm"),
        NodeDecision("c", "Conv", Verdict.QUANTIZED, "conv"),
    ]
    return Plan("t", "r", form, {node.node: node for node in nodes})


def test_a_float_model_without_a_finite_number_proves_nothing() -> None:
    nans = np.full((2, 3), np.nan, np.float32)
    [item] = compare_outputs(lambda _: {"y": nans}, lambda _: {"y": nans}, [{}, {}])
    assert not item.compared
    assert [told.code for told in judge([item], VerifyOptions())] == [Code.NOT_FINITE]
    empty = np.zeros((2, 0), np.float32)
    [item] = compare_outputs(lambda _: {"y": empty}, lambda _: {"y": empty}, [{}])
    assert item.compared
    assert judge([item], VerifyOptions()) == []


def test_kernels_are_found_by_name_and_layout_does_not_matter() -> None:
    seen = [
        Seen("fc", "com.microsoft:MatMulIntegerToFloat", ("a",), ("fc.out",)),
        Seen("c_nhwc", "com.microsoft:QLinearConv", ("fc.out",), ("y",)),
    ]
    proof = prove(a_plan(), TARGET, seen)
    assert proof.ok
    assert proof.diagnostics() == []


def test_kernels_are_found_by_how_a_name_begins_where_the_plan_is_long() -> None:
    """Each name is compared with few others: 20,000 nodes take no minutes."""
    count = 20_000
    op = "com.microsoft:MatMulIntegerToFloat"
    decisions = [
        NodeDecision(f"n{i}", "MatMul", Verdict.QUANTIZED, kernel="mm") for i in range(count)
    ]
    plan = Plan("t", "r", "ort", {item.node: item for item in decisions})
    compared = [0]

    class Name(str):
        def startswith(self, *args: Any) -> bool:
            compared[0] += 1
            return super().startswith(*args)

    seen = [Seen(Name(f"n{i}/fused"), op, (), (Name(f"n{i}.out"),)) for i in range(count)]
    seen.append(Seen("n10_", "MatMul"))
    assert prove(plan, TARGET, seen).ok
    assert compared[0] < 10 * count


def test_a_kernel_that_runs_in_float_is_an_error_with_both_names() -> None:
    seen = [Seen("fc", "MatMul", ("a",), ("fc.out",)), Seen("c", "QLinearConv", (), ("y",))]
    (found,) = prove(a_plan(), TARGET, seen).diagnostics()
    assert found.code is Code.KERNEL_NOT_SEEN
    assert "MatMulIntegerToFloat" in found.message
    assert "runs MatMul" in found.message


def test_a_kernel_that_vanished_is_an_error() -> None:
    proof = prove(a_plan(), TARGET, [Seen("fc", "com.microsoft:MatMulIntegerToFloat")])
    assert [item.node for item in proof.kernels if not item.ok] == ["c"]


def test_a_round_trip_that_no_kernel_absorbed_is_told() -> None:
    seen = [
        Seen("fc", "com.microsoft:MatMulIntegerToFloat"),
        Seen("c", "QLinearConv"),
        Seen("q", "QuantizeLinear", ("x",), ("xq",)),
        Seen("dq", "DequantizeLinear", ("xq",), ("xd",)),
    ]
    codes = [item.code for item in prove(a_plan("qdq"), TARGET, seen).diagnostics()]
    assert codes == [Code.LEFTOVER_QDQ]


FLOATS = arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32))


@given(FLOATS)
def test_a_model_equals_itself(x: np.ndarray) -> None:
    (item,) = compare_outputs(lambda f: {"y": f["x"]}, lambda f: {"y": f["x"]}, [{"x": x}])
    assert item.cosine == pytest.approx(1.0)
    assert item.max_abs == 0.0
    assert judge([item], VerifyOptions()) == []


def test_infinite_float_outputs_are_left_out() -> None:
    x = np.array([1.0, -np.inf, 2.0], np.float32)
    y = np.array([1.0, -1e30, 2.0], np.float32)
    (item,) = compare_outputs(lambda f: {"y": x}, lambda f: {"y": y}, [{}])
    assert item.finite
    assert item.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("y", "code"),
    [
        ([np.nan, 2.0, 3.0], Code.WRONG_RESULT),
        ([-1.0, -2.0, -3.0], Code.WRONG_RESULT),
        ([1.0, 2.0, 1.0], Code.LOW_FIDELITY),
    ],
)
def test_bad_outputs_are_judged(y: list[float], code: Code) -> None:
    x = np.array([1.0, 2.0, 3.0], np.float32)
    results = compare_outputs(lambda f: {"y": x}, lambda f: {"y": np.array(y, np.float32)}, [{}])
    assert [item.code for item in judge(results, VerifyOptions())] == [code]


@pytest.mark.parametrize(
    ("y", "codes"),
    [([0, 2, 0], [Code.LOW_FIDELITY]), ([0, 0, 0], []), ([0, np.inf, 0], [Code.WRONG_RESULT])],
)
def test_where_float_gives_zeros_alone_a_cosine_is_no_judge(y: list[float], codes: Any) -> None:
    zeros = np.zeros(3, np.int64)
    results = compare_outputs(lambda _: {"y": zeros}, lambda _: {"y": np.array(y)}, [{}])
    told = judge(results, VerifyOptions())
    assert [item.code for item in told] == codes
    assert all("up to 2" in item.message for item in told if item.code is Code.LOW_FIDELITY)


def test_where_weights_alone_are_quantized_ranges_are_not_to_blame() -> None:
    near = OutputFidelity("y", 0.9, 7.0, 1.0, finite=True, feeds=1)
    [told] = judge([near], VerifyOptions(), only_weights=True)
    assert "dynamic" not in told.hint
    assert "smaller groups" in told.hint


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"y": np.ones((2, 3))}, "the artifact gives [2, 3], float [2, 2]"),
        ({"z": np.ones((2, 2))}, "the artifact gives no such output, float [2, 2]"),
    ],
)
def test_another_shape_is_a_wrong_result(given: dict[str, np.ndarray], said: str) -> None:
    [item] = compare_outputs(lambda f: {"y": np.ones((2, 2))}, lambda f: given, [{}])
    [told] = judge([item], VerifyOptions())
    assert (told.code, told.message) == (Code.WRONG_RESULT, said)
    json.dumps(item.to_dict(), allow_nan=False)
    bare = Report({"name": "m"}, "cpu", "r", "ort", fidelity=(item.to_dict(),))
    assert "float [2, 2]" in str(bare)


def test_padded_rows_do_not_count() -> None:
    feed = {"attention_mask": np.array([[1, 0]])}
    x, y = np.ones((1, 2, 3), np.float32), np.ones((1, 2, 3), np.float32)
    y[0, 1] = 100.0
    (item,) = compare_outputs(
        lambda f: {"y": x}, lambda f: {"y": y}, [feed], Padding("attention_mask")
    )
    assert item.max_abs == 0.0


@pytest.mark.parametrize(("size", "order"), [(8, "aaabbb"), (1 << 25, "ababab")])
def test_the_reference_runs_ahead_as_far_as_its_outputs_are_small(size: int, order: str) -> None:
    ran: list[str] = []
    x = np.broadcast_to(np.float32(1.0), (size,))

    def answer(who: str) -> dict[str, np.ndarray]:
        ran.append(who)
        return {"y": x if who == "a" else x[:1]}  # another shape: nothing more to compare

    compare_outputs(lambda f: answer("a"), lambda f: answer("b"), [{}, {}, {}])
    assert "".join(ran) == order


def test_a_selection_of_another_size_is_no_wrong_result() -> None:
    [item] = compare_outputs(
        lambda _: {"y": np.ones((3, 3))}, lambda _: {"y": np.ones((2, 3))}, [{}]
    )
    assert [told.code for told in judge([item], VerifyOptions())] == [Code.WRONG_RESULT]
    [told] = judge([item], VerifyOptions(), counted={"y"})
    assert told.code is Code.LOW_FIDELITY
    assert "[2, 3], float [3, 3]: its size hangs on values" in told.message

from __future__ import annotations

import json

import numpy as np
import pytest

from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.calibration.runner import Statistics
from qcompiler.calibration.summary import TensorSummary
from qcompiler.pipeline.contract import TensorRange
from qcompiler.report.distributions import activation_ranges, weight_ranges
from qcompiler.report.operators import CONVERSIONS, by_family, by_planned, family
from qcompiler.schemes import QSpec


def seen(values: np.ndarray) -> Statistics:
    summary = TensorSummary.start("x", values, (), 0.1)
    summary.update(values)
    return Statistics({"x": summary}, labels={"x": "layer (%x)"})


def chosen(lo: float, hi: float) -> dict[str, TensorRange]:
    return {"x": TensorRange(np.float32(lo) + np.zeros(()), np.float32(hi) + np.zeros(()), "mse")}


def test_a_range_comes_with_what_was_seen_of_the_value() -> None:
    values = np.linspace(-1, 3, 4001, dtype=np.float32)
    entry = activation_ranges(chosen(-1, 2), seen(values))["x"]
    assert (entry["label"], entry["method"]) == ("layer (%x)", "mse")
    assert (entry["seen_lo"], entry["seen_hi"]) == (-1.0, 3.0)
    assert entry["clipped"] == pytest.approx(0.25, abs=0.01)
    assert entry["bulk"] == pytest.approx(4 * 0.999 / 3, abs=0.02)
    counts = entry["histogram"]["counts"]
    assert sum(counts) == pytest.approx(len(values), abs=len(counts))
    assert max(counts) < 2 * min(counts)  # a ramp is flat
    json.dumps(entry)


def test_an_outlier_shows_in_the_bulk() -> None:
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    values[7] = 100.0
    entry = activation_ranges(chosen(-5, 100), seen(values))["x"]
    assert entry["bulk"] < 0.1
    assert entry["clipped"] == 0.0


def test_a_given_range_and_a_dead_value_have_no_histogram() -> None:
    ranges = chosen(0, 1)
    assert activation_ranges(ranges, None)["x"] == {"lo": 0.0, "hi": 1.0, "method": "mse"}
    dead = activation_ranges(ranges, seen(np.zeros(8, np.float32)))["x"]
    assert "histogram" not in dead


@pytest.mark.parametrize("text", ["s8c@1", "s8t", "u4g32@0z", "s8c@0"])
def test_the_sample_of_a_weight_is_the_weight(text: str) -> None:
    weight = np.random.default_rng(1).normal(size=(256, 384)).astype(np.float32)
    tensor = round_to_nearest(weight, QSpec.parse(text), where="w")
    [entry] = weight_ranges({("node", 1): tensor})
    whole = tensor.dequantize()
    assert entry["shape"] == [256, 384]
    assert entry["lo"] <= whole.min() + 1e-4
    assert entry["hi"] >= whole.max() - 1e-4
    histogram = entry["histogram"]
    assert sum(histogram["counts"]) >= 12_000
    width = (histogram["hi"] - histogram["lo"]) / len(histogram["counts"])
    middles = histogram["lo"] + width * (np.arange(len(histogram["counts"])) + 0.5)
    mean = np.average(middles, weights=histogram["counts"])
    spread = np.sqrt(np.average((middles - mean) ** 2, weights=histogram["counts"]))
    assert mean == pytest.approx(whole.mean(), abs=0.03)
    assert spread == pytest.approx(whole.std(), rel=0.05)
    assert 0 < entry["bits"] <= tensor.spec.dtype.bitwidth


def test_columns_are_sampled_alike_whatever_the_width() -> None:
    weight = np.ones((4096, 64), np.float32)
    weight[:, 1] = 2.0  # an even step would meet this column always or never
    [entry] = weight_ranges({("node", 1): round_to_nearest(weight, QSpec.parse("s8t"), where="w")})
    share = entry["histogram"]["counts"][-1] / sum(entry["histogram"]["counts"])
    assert share == pytest.approx(1 / 64, rel=0.05)


def test_a_shared_weight_is_listed_once() -> None:
    tensor = round_to_nearest(np.eye(8, dtype=np.float32), QSpec.parse("s8t"), where="w")
    assert [item["node"] for item in weight_ranges({("a", 1): tensor, ("b", 1): tensor})] == ["a"]


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("com.microsoft:MatMulIntegerToFloat", "MatMul"),
        ("QLinearConv", "Conv"),
        ("FusedConv", "Conv"),
        ("QLinearGlobalAveragePool", "GlobalAveragePool"),
        ("DynamicQuantizeLinear", CONVERSIONS),
        ("Softmax", "Softmax"),
    ],
)
def test_operators_of_the_runtime_are_told_by_what_they_compute(op: str, name: str) -> None:
    assert family(op) == name


def test_times_add_up_by_family_and_by_planned_node() -> None:
    assert by_family({"Gemm": 1.0, "MatMul": 2.0, "Add": 5.0}) == {"Add": 5.0, "MatMul": 3.0}
    times = {"conv_token_3": 2.0, "conv_nhwc": 1.0, "other": 9.0, "a_nchwc": 4.0}
    assert by_planned(times, {"conv", "a_nchwc"}) == {"conv": 3.0, "a_nchwc": 4.0}

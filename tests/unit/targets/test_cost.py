"""Work, prediction, and fits."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.targets.cost import Work, cost_us, evaluate, lookup, per_mac_ns, work_of
from qcompiler.targets.fit import fit_cost, refit_cost, scale_cost
from qcompiler.targets.probe_speed import Measured
from qcompiler.targets.registry import load_target, target_names
from qcompiler.targets.schema import Cost

CPUS = [name for name in target_names() if name.startswith("cpu-")]


def node(op, shapes, out, **attributes):
    inputs = [ir.Value(name=f"i{index}") for index in range(len(shapes))]
    made = ir.node(op, inputs, attributes)
    made.outputs[0].name = "out"
    seen = {f"i{index}": (np.dtype(np.float32), shape) for index, shape in enumerate(shapes)}
    return made, {**seen, "out": (np.dtype(np.float32), out)}


@pytest.mark.parametrize(
    ("op", "shapes", "out", "attributes", "wanted"),
    [
        ("MatMul", [(8, 16, 32), (32, 64)], (8, 16, 64), {}, Work(8 * 16 * 32 * 64, 128, 8192)),
        (
            "MatMul",
            [(2, 4, 16, 8), (2, 4, 8, 16)],
            (2, 4, 16, 16),
            {},
            Work(2 * 4 * 16 * 16 * 8, 16, 2048, "batched"),
        ),
        ("Gemm", [(5, 6), (7, 6)], (5, 7), {"transB": 1}, Work(5 * 6 * 7, 5, 35)),
        ("Gemm", [(6, 5), (6, 7)], (5, 7), {"transA": 1}, Work(5 * 6 * 7, 5, 35)),
        (
            "Conv",
            [(2, 3, 8, 8), (16, 3, 3, 3)],
            (2, 16, 4, 4),
            {},
            Work(2 * 16 * 16 * 27, 32, 512, "stem"),
        ),
        (
            "Conv",
            [(1, 8, 4, 4), (16, 8, 1, 1)],
            (1, 16, 4, 4),
            {},
            Work(16 * 16 * 8, 16, 256, "pointwise"),
        ),
        (
            "Conv",
            [(1, 8, 4, 4), (8, 8, 3, 3)],
            (1, 8, 4, 4),
            {},
            Work(16 * 16 * 72, 16, 128, "dense", 3.5),  # 8 outputs take the time of 16
        ),
        (
            "Conv",
            [(1, 8, 4, 4), (8, 1, 3, 3)],
            (1, 8, 4, 4),
            {"group": 8},
            Work(8 * 16 * 9, 16, 128, "depthwise", 8.0),
        ),
        (
            "Conv",
            [(1, 8, 4, 4), (8, 4, 3, 3)],
            (1, 8, 4, 4),
            {"group": 2},
            Work(8 * 16 * 36, 16, 128, "grouped"),
        ),
        ("Add", [(4, 1, 8), (1, 6, 8)], (4, 6, 8), {}, Work(0, 24, 192)),
        ("ReduceMean", [(4, 6)], (4, 1), {}, Work(0, 4, 24)),
        ("Gather", [(1000, 8), (3, 5)], (3, 5, 8), {}, Work(0, 15, 120)),
        ("Reshape", [(4, 6), (1,)], (24,), {}, Work(0, 1, 0)),
        (
            "Attention",
            [(2, 16, 32), (2, 16, 32), (2, 16, 32)],
            (2, 16, 32),
            {"q_num_heads": 4},
            Work(2 * (2 * 16 * 32) * 16, 16, 2 * 4 * 16 * 16),
        ),
    ],
)
def test_the_work_of_an_operator(op, shapes, out, attributes, wanted):
    made, seen = node(op, shapes, out, **attributes)
    assert work_of(made, seen) == wanted


def test_work_is_unknown_without_shapes():
    made, seen = node("MatMul", [(8, 16), (16, 4)], (8, 4))
    del seen["i1"]
    assert work_of(made, seen) is None
    del seen["out"]
    assert work_of(made, seen) is None


def test_the_shape_of_a_weight_is_that_of_its_constant():
    made, seen = node("MatMul", [(8, 16), (16, 4)], (8, 4))
    del seen["i1"]
    made.inputs[1].const_value = ir.tensor(np.zeros((16, 4), np.float32))
    assert work_of(made, seen).macs == 8 * 16 * 4


def test_cost_per_mac_is_a_line_of_logarithms_and_constant_outside():
    points = ((1.0, 8.0), (16.0, 2.0), (256.0, 0.5))
    assert per_mac_ns(points, 0.5) == 8.0
    assert per_mac_ns(points, 4) == pytest.approx(4.0)
    assert per_mac_ns(points, 64) == pytest.approx(1.0)
    assert per_mac_ns(points, 1e6) == 0.5
    assert per_mac_ns(((1.0, 0.0), (16.0, 2.0)), 4) == pytest.approx(1.0)
    assert per_mac_ns((), 4) == 0.0


def test_a_cost_adds_its_three_terms():
    cost = Cost(2.0, ((1.0, 3.0),), 5.0)
    assert evaluate(cost, Work(1000, 1, 2000)) == pytest.approx(2 + 3 + 10)


def test_lookup_falls_back_from_special_to_general():
    costs = {"float": Cost(1), "float.Conv": Cost(2), "conv-static": Cost(3), "quantize": Cost(4)}
    for key, wanted in (
        ("float.Conv/stem", 2),
        ("float.Exp", 1),
        ("carry.Conv", 2),
        ("carry.Reshape", 1),
        ("conv-static/depthwise", 3),
        ("quantize-row", 4),
    ):
        assert lookup(costs, key) == Cost(wanted), key
    assert lookup(costs, "matmul-static") is None


def test_a_target_without_costs_predicts_nothing():
    assert cost_us(load_target("tensorrt"), "conv-static", Work(1, 1, 1)) is None


def test_the_kind_of_the_work_chooses_the_cost():
    target = load_target("cpu-vnni")
    work = Work(10**7, 3136, 10**5, "depthwise")
    assert cost_us(target, "conv-static", work) == cost_us(target, "conv-static/depthwise", work)
    dense = dataclasses.replace(work, kind="dense")
    assert cost_us(target, "conv-static", dense) < cost_us(target, "conv-static", work)


works = st.builds(
    Work,
    macs=st.integers(0, 10**10),
    rows=st.integers(1, 10**5),
    elements=st.integers(0, 10**8),
    kind=st.sampled_from(["", "dense", "depthwise", "pointwise", "stem", "batched"]),
)


@pytest.mark.parametrize("name", CPUS)
@given(work=works, more=st.integers(1, 10**6))
def test_more_work_never_costs_less(name, work, more):
    target = load_target(name)
    for key in target.costs:
        before = cost_us(target, key, work)
        assert before >= 0
        bigger = dataclasses.replace(work, macs=work.macs + more, elements=work.elements + more)
        assert cost_us(target, key, bigger) >= before


@pytest.mark.parametrize("name", CPUS)
def test_more_rows_never_cost_less(name):
    target = load_target(name)
    for key in target.costs:
        times = [
            cost_us(target, key, Work(rows * 512 * 512, rows, rows * 512))
            for rows in range(1, 2049)
        ]
        assert (np.diff(times) >= -1e-9).all(), key


@pytest.mark.parametrize("name", CPUS)
def test_int8_pays_where_it_is_known_to(name):
    target = load_target(name)
    large = Work(1024 * 384 * 1536, 1024, 1024 * 1536)
    assert cost_us(target, "matmul-static", large) < cost_us(target, "float.MatMul", large)
    dense = Work(3136 * 64 * 576, 3136, 64 * 3136, "dense")
    assert cost_us(target, "conv-static", dense) < cost_us(target, "float.Conv", dense)
    one = Work(1024 * 4096, 1, 4096)
    assert cost_us(target, "matmul-weight/4", one) < 0.5 * cost_us(target, "float.MatMul", one)


@pytest.mark.parametrize("name", ["cpu-amx", "cpu-vnni"])
def test_int8_does_not_pay_for_depthwise(name):
    target, work = load_target(name), Work(3136 * 96 * 9, 3136, 96 * 3136, "depthwise")
    assert cost_us(target, "conv-static", work) > cost_us(target, "float.Conv", work)


def test_int8_pays_for_images_of_four_channels():
    target, work = load_target("cpu-vnni"), Work(12544 * 32 * 27, 12544, 401408, "stem")
    assert cost_us(target, "conv-static", work) < cost_us(target, "float.Conv", work)


def samples(cost, *shapes):
    works = [Work(m * k * n, m, max(m * k, m * n)) for m, k, n in shapes]
    return [(work, evaluate(cost, work)) for work in works]


SHAPES = [(m, k, n) for m in (1, 16, 256) for k, n in ((64, 64), (384, 1536), (1024, 256))]


def test_a_fit_finds_the_cost_that_made_the_samples():
    true = Cost(3.0, ((1.0, 0.03), (16.0, 0.01), (256.0, 0.004)), 0.05)
    found = fit_cost(samples(true, *SHAPES), (1.0, 16.0, 256.0))
    assert found.fixed_us == pytest.approx(3.0, rel=0.02)
    assert found.per_element_ns == pytest.approx(0.05, rel=0.05)
    assert [ns for _, ns in found.per_mac_ns] == pytest.approx([0.03, 0.01, 0.004], rel=0.02)


def test_knots_that_no_sample_reaches_are_left_out():
    found = fit_cost(samples(Cost(1.0, ((1.0, 0.01),)), *SHAPES[:3]), (1.0, 16.0, 256.0))
    assert [rows for rows, _ in found.per_mac_ns] == [1.0]


@given(
    times=st.lists(st.floats(0.1, 1e5), min_size=3, max_size=12),
    rows=st.lists(st.integers(1, 5000), min_size=12, max_size=12),
)
def test_a_fit_is_never_negative(times, rows):
    data = [
        (Work(r * 4096, r, r * 64 + i), t)
        for i, (t, r) in enumerate(zip(times, rows, strict=False))
    ]
    found = fit_cost(data, (1.0, 64.0, 1024.0))
    assert found.fixed_us >= 0
    assert found.per_element_ns >= 0
    assert all(ns >= 0 for _, ns in found.per_mac_ns)


def test_few_samples_scale_the_known_cost():
    known = Cost(2.0, ((1.0, 0.04), (64.0, 0.01)), 0.1)
    slower = [(work, 3 * time) for work, time in samples(known, (1, 64, 64), (64, 256, 256))]
    assert refit_cost(known, slower, (1.0, 64.0)) == Cost(6.0, ((1.0, 0.12), (64.0, 0.03)), 0.3)


def test_what_was_not_measured_follows_the_speed_of_float():
    known = {"float.MatMul": Cost(1.0, ((1.0, 0.01),)), "quantize": Cost(2.0, (), 0.1)}
    measured = Measured()
    assert measured.speed(known) == 1.0
    for work, time in samples(known["float.MatMul"], (1, 64, 64), (16, 64, 64)):
        measured.add("float.MatMul", work, 3 * time)
    assert measured.speed(known) == pytest.approx(3.0)
    assert scale_cost(known["quantize"], 3.0) == Cost(6.0, (), 0.3)


def test_a_fit_refuses_nothing_and_zero():
    with pytest.raises(ValueError, match="no sample"):
        fit_cost([])
    with pytest.raises(ValueError, match="not positive"):
        fit_cost([(Work(1, 1, 1), 0.0)])


@pytest.mark.parametrize(
    ("channels", "slowdown"), [(16, 16 / 7), (24, 24 / 7), (32, 10 / 7), (64, 1.0), (72, 1.0)]
)
def test_depthwise_kernels_on_integers_are_slow_for_few_channels(channels, slowdown):
    shapes, out = [(1, channels, 4, 4), (channels, 1, 3, 3)], (1, channels, 4, 4)
    made, seen = node("Conv", shapes, out, group=channels)
    assert work_of(made, seen).slowdown == pytest.approx(slowdown)


@pytest.mark.parametrize(("outputs", "slowdown"), [(1, 3.5), (15, 3.5), (16, 1.0), (24, 1.0)])
def test_convolutions_to_few_channels_pay_for_sixteen(outputs, slowdown):
    made, seen = node("Conv", [(1, 8, 4, 4), (outputs, 8, 3, 3)], (1, outputs, 4, 4))
    found = work_of(made, seen)
    assert found.slowdown == slowdown
    assert found.macs == max(outputs, 16) * 16 * 72

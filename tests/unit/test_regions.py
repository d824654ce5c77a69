"""The cut against brute force, and the cases one can see through."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.analysis.regions import FLOAT, LOW, Mode, Problem, Tensor, Unit, cost_of, solve

NARROWING: Mode = (True, False)
WIDENING: Mode = (False, True)


def brute_force(problem: Problem) -> float:
    choices = [[(unit.name, mode) for mode in unit.costs] for unit in problem.units]
    return min(cost_of(problem, dict(modes)) for modes in itertools.product(*choices))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Graphs of up to six units; each reads any earlier tensors and writes one or two."""
    us = st.integers(0, 20).map(float)
    tensors = ["x"]
    units = []
    for index in range(draw(st.integers(1, 6))):
        reads = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        writes = [f"t{index}.{k}" for k in range(draw(st.integers(1, 2)))]
        modes = draw(
            st.sampled_from(
                [
                    [FLOAT],
                    [LOW],
                    [FLOAT, LOW],
                    [FLOAT, NARROWING],
                    [NARROWING],
                    [FLOAT, NARROWING, LOW],
                    [FLOAT, WIDENING, LOW],
                    [NARROWING, LOW],
                    [WIDENING, FLOAT],
                ]
            )
        )
        costs = {mode: draw(us) for mode in modes}
        units.append(Unit(f"u{index}", tuple(reads), tuple(writes), costs))
        tensors += writes
    return Problem(
        tuple(units),
        tuple(Tensor(name, draw(us), draw(us), draw(st.booleans())) for name in tensors),
    )


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_cut_is_as_cheap_as_the_best_of_all_placements(problem: Problem) -> None:
    found = solve(problem)
    assert found.cost_us == pytest.approx(brute_force(problem))
    assert found.cost_us == pytest.approx(cost_of(problem, found.modes))


def test_all_four_modes_are_weighed_when_they_are_submodular() -> None:
    costs = {FLOAT: 10.0, NARROWING: 7.0, WIDENING: 9.0, LOW: 5.0}
    for pay in ((0.0, 0.0), (1.0, 1.0), (2.5, 0.0), (6.0, 6.0)):
        problem = Problem(
            (Unit("u", ("x",), ("y",), costs),), (Tensor("x", *pay), Tensor("y", *pay, True))
        )
        assert solve(problem).cost_us == pytest.approx(brute_force(problem))


def test_a_tensor_pays_once_for_all_its_readers() -> None:
    units = tuple(Unit(f"u{i}", ("x",), (f"y{i}",), {FLOAT: 10.0, NARROWING: 8.0}) for i in "abc")
    tensors = (Tensor("x", 5.0, 5.0), *(Tensor(f"y{i}", 1.0, 1.0, True) for i in "abc"))
    found = solve(Problem(units, tensors))
    assert set(found.modes.values()) == {NARROWING}  # 3 x 2 saved, 5 paid
    assert found.cost_us == pytest.approx(29.0)
    assert set(solve(Problem(units[:2], tensors)).modes.values()) == {FLOAT}


def test_equal_costs_stay_float() -> None:
    unit = Unit("u", ("x",), ("y",), {FLOAT: 10.0, NARROWING: 8.0})
    problem = Problem((unit,), (Tensor("x", 2.0, 2.0), Tensor("y", 2.0, 2.0, True)))
    assert solve(problem).modes == {"u": FLOAT}


def test_a_node_without_gain_goes_low_between_two_that_gain() -> None:
    units = (
        Unit("conv1", ("x",), ("a",), {FLOAT: 100.0, LOW: 30.0}),
        Unit("depthwise", ("a",), ("b",), {FLOAT: 10.0, LOW: 12.0}),
        Unit("conv2", ("b",), ("y",), {FLOAT: 100.0, LOW: 30.0}),
    )
    found = solve(Problem(units, tuple(Tensor(n, 5.0, 5.0, n == "y") for n in "xaby")))
    assert set(found.modes.values()) == {LOW}
    assert found.cost_us == pytest.approx(82.0)


def test_modes_that_no_cut_can_hold_are_refused() -> None:
    tensors = (Tensor("x", 1.0, 1.0), Tensor("y", 1.0, 1.0))
    costs = {FLOAT: 9.0, NARROWING: 1.0, WIDENING: 1.0, LOW: 9.0}
    with pytest.raises(ValueError, match="submodular"):
        solve(Problem((Unit("u", ("x",), ("y",), costs),), tensors))
    with pytest.raises(ValueError, match="must have a mode in float"):
        solve(Problem((Unit("u", ("x",), ("y",), {NARROWING: 1.0, WIDENING: 1.0}),), tensors))
    with pytest.raises(ValueError, match="no mode"):
        solve(Problem((Unit("u", ("x",), ("y",), {}),), tensors))
    with pytest.raises(ValueError, match="not a time"):
        solve(Problem((Unit("u", ("x",), ("y",), {FLOAT: -1.0, LOW: 1.0}),), tensors))

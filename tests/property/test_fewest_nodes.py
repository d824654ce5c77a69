"""The search for the fewest nodes in float: right, and within its bound on evaluations."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from qcompiler.sensitivity.search import fewest


@given(st.integers(1, 2000), st.integers(0, 2100))
def test_the_fewest_are_found_within_log2_plus_two_evaluations(nodes: int, needed: int) -> None:
    calls: list[int] = []

    def holds(count: int) -> bool:
        calls.append(count)
        return count >= needed

    assert fewest(0, nodes, holds) == (needed if needed <= nodes else None)
    assert len(calls) <= math.log2(nodes) + 2
    assert len(set(calls)) == len(calls)


@given(st.integers(0, 50), st.integers(0, 50), st.data())
def test_what_is_returned_was_seen_to_hold_even_when_more_may_be_worse(
    low: int, more: int, data: st.DataObject
) -> None:
    answers: dict[int, bool] = {}

    def holds(count: int) -> bool:
        assert low <= count <= low + more
        return answers.setdefault(count, data.draw(st.booleans()))

    found = fewest(low, low + more, holds)
    assert answers[low + more] is False if found is None and more else True
    assert found is None or answers[found]


def test_nothing_to_return_takes_one_evaluation() -> None:
    assert fewest(0, 0, lambda count: False) is None
    assert fewest(0, 58, lambda count: True) == 0

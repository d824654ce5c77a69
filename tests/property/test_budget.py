"""Choosing under a budget is exact."""

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcompiler.analysis.budget import choose_under_budget

numbers = st.floats(0, 100, allow_nan=False).map(lambda x: round(x, 3))
tables = st.lists(
    st.dictionaries(st.sampled_from([2, 3, 4, 8]), st.tuples(numbers, numbers), min_size=1),
    min_size=0,
    max_size=4,
)


@example([{2: (0.0, 1.0), 3: (1.0, 0.0)}], 0.0)
@given(tables, st.floats(0, 250).map(lambda x: round(x, 3)))
@settings(max_examples=150, deadline=None)
def test_no_other_choice_is_better(table, budget):
    losses = {i: {o: pair[0] for o, pair in row.items()} for i, row in enumerate(table)}
    costs = {i: {o: pair[1] for o, pair in row.items()} for i, row in enumerate(table)}
    found = choose_under_budget(losses, costs, budget)

    def total(of, choice):
        return sum(of[i][option] for i, option in choice.items())

    every = [dict(enumerate(options)) for options in itertools.product(*table)]
    fitting = [choice for choice in every if total(costs, choice) <= budget]
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert set(found) == set(losses)
    # within the solver's tolerance on the budget and on losses
    assert total(costs, found) <= budget * (1 + 1e-6) + 1e-6
    best = min(total(losses, choice) for choice in fitting)
    assert total(losses, found) <= best + 1e-4 * max(best, 1)

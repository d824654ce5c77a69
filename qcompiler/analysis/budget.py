"""Choose one option for each of many things under a common budget, exactly.

The multiple-choice knapsack (Kellerer, Pferschy, Pisinger 2004, chapter 11) as an integer program,
solved by HiGHS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

__all__ = ["choose_under_budget"]

Key = TypeVar("Key")
Option = TypeVar("Option")


def choose_under_budget(
    losses: Mapping[Key, Mapping[Option, float]],
    costs: Mapping[Key, Mapping[Option, float]],
    budget: float,
) -> dict[Key, Option] | None:
    """The options with the smallest sum of losses whose costs keep to the budget.

    Args:
        losses: Loss of each option of each thing; at least one option each.
        costs: Their costs, with the same keys.
        budget: Largest sum of costs.

    Returns:
        An option for each thing; None when even the cheapest do not fit.
    """
    from scipy import optimize, sparse

    pairs = [(key, option) for key, found in losses.items() for option in found]
    if sum(min(costs[key].values()) for key in losses) > budget:
        return None
    if not pairs:
        return {}
    loss = np.array([losses[key][option] for key, option in pairs])
    cost = np.array([costs[key][option] for key, option in pairs])
    rows = {key: row for row, key in enumerate(losses)}
    ones = sparse.csr_array(
        (np.ones(len(pairs)), ([rows[key] for key, _ in pairs], np.arange(len(pairs))))
    )
    # solvers have absolute tolerances: all numbers near 1
    scale = budget or 1.0
    found = optimize.milp(
        loss / (loss.max() or 1.0),
        integrality=np.ones(len(pairs)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(ones, 1, 1),
            optimize.LinearConstraint(cost[None] / scale, -np.inf, budget / scale),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RuntimeError(f"the solver gave up: {found.message}")
    return {key: option for (key, option), taken in zip(pairs, found.x, strict=True) if taken > 0.5}

"""How many nodes must go back to float? Bisection over a ranking, with a bound on evaluations."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["fewest"]


def fewest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest count in ``[low, high]`` that holds, if whatever lies above one that holds does.

    ``low`` is tried first: most models need nothing. With ``n = high - low`` there are at most
    ``floor(log2(n)) + 2`` calls (one for ``n = 0``): the first leaves ``n + 1`` outcomes, "none"
    among them, and each further call halves them. What is returned was called and did hold.

    Args:
        low: Smallest count to think of.
        high: Largest, at least ``low``.
        holds: Whether the target is met when so many nodes are returned.
    """
    if holds(low):
        return low
    fails, bound = low, high + 1
    while bound - fails > 1:
        middle = (fails + bound) // 2
        if holds(middle):
            bound = middle
        else:
            fails = middle
    return bound if bound <= high else None

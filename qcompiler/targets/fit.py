"""Fit the cost model of a row to measured times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.targets.cost import Work, evaluate, per_mac_ns
from qcompiler.targets.schema import Cost

__all__ = ["fit_cost", "refit_cost", "scale_cost"]

_SWEEPS = 4000  # of coordinate descent; a table has at most ten unknowns, so this is milliseconds
_ENOUGH = 2  # samples per unknown below which a known cost is scaled instead
_DIGITS = 4  # significant digits kept: the measurements have fewer


def fit_cost(samples: Sequence[tuple[Work, float]], knots: Sequence[float] = ()) -> Cost:
    """The nonnegative :class:`Cost` with the least squared relative error on ``samples``.

    The model is linear in its unknowns: the fixed cost, the cost per element, and the cost per
    multiply-accumulate at each knot, whose weight is the hat function of the knot at log(rows)
    (exact at the knots; between them the prediction is a little lower).
    Relative errors count because a wrong microsecond matters more on a small node than on a large
    one. Solved by cyclic coordinate descent with clipping at zero, which converges for nonnegative
    least squares (Franc, Hlavac and Navara 2005, "Sequential coordinate-wise algorithm for the
    non-negative least squares problem", section 3).

    Args:
        samples: Work done and microseconds it took, all > 0.
        knots: Rows at which the cost per multiply-accumulate is free, ascending; those that no
            sample reaches are left out. Without knots the model has no such term.

    Raises:
        ValueError: If there is no sample, or a time is not positive.
    """
    if not samples:
        raise ValueError("no sample to fit")
    times = np.array([time for _, time in samples], dtype=np.float64)
    if not (times > 0).all():
        raise ValueError("a measured time is not positive")
    knots = _reached(knots, [work.rows for work, _ in samples if work.macs])
    columns = [
        [1.0, work.elements / 1000.0, *(_hat(knots, i, work) for i in range(len(knots)))]
        for work, _ in samples
    ]
    design = np.array(columns, dtype=np.float64) / times[:, None]
    fixed, per_element, *per_mac = _nonnegative_least_squares(design, np.ones(len(times)))
    return Cost(
        fixed_us=_short(fixed),
        per_mac_ns=tuple((knot, _short(value)) for knot, value in zip(knots, per_mac, strict=True)),
        per_element_ns=_short(per_element),
    )


def refit_cost(
    known: Cost | None, samples: Sequence[tuple[Work, float]], knots: Sequence[float] = ()
) -> Cost:
    """A cost that follows the samples, of which there may be few.

    With two samples per unknown or more the cost is fitted anew. With fewer, the known cost keeps
    its shape and is multiplied by the median of measured over predicted.

    Raises:
        ValueError: As :func:`fit_cost`.
    """
    rows = [work.rows for work, _ in samples if work.macs]
    unknowns = 2 + len(_reached(knots, rows))
    predicted = [evaluate(known, work) if known else 0.0 for work, _ in samples]
    if known is None or len(samples) >= _ENOUGH * unknowns or not all(predicted):
        return fit_cost(samples, knots)
    share = statistics.median(
        time / before for (_, time), before in zip(samples, predicted, strict=True)
    )
    return scale_cost(known, share)


def scale_cost(cost: Cost, share: float) -> Cost:
    """The cost of a machine that takes ``share`` times as long for everything."""
    return Cost(
        fixed_us=_short(cost.fixed_us * share),
        per_mac_ns=tuple((row, _short(ns * share)) for row, ns in cost.per_mac_ns),
        per_element_ns=_short(cost.per_element_ns * share),
    )


def _reached(knots: Sequence[float], rows: Sequence[int]) -> tuple[float, ...]:
    """The knots next to a sample: a knot without one could take any value."""
    keep = set()
    for row in rows:
        keep.add(min(knots, key=lambda knot: abs(np.log(knot / row))) if knots else 0.0)
    return tuple(sorted(keep)) if knots else ()


def _hat(knots: tuple[float, ...], index: int, work: Work) -> float:
    points = tuple((knot, float(i == index)) for i, knot in enumerate(knots))
    return per_mac_ns(points, work.rows) * work.macs / 1000.0


def _nonnegative_least_squares(
    design: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> list[float]:
    size = np.linalg.norm(design, axis=0)
    size[size == 0] = 1.0
    scaled = design / size
    gram, target = scaled.T @ scaled, scaled.T @ wanted
    solution = np.zeros(len(target))
    for _ in range(_SWEEPS):
        before = solution.copy()
        for i in range(len(solution)):
            if gram[i, i] > 0:
                step = (target[i] - gram[i] @ solution) / gram[i, i]
                solution[i] = max(0.0, solution[i] + step)
        if np.abs(solution - before).max(initial=0.0) < 1e-12:
            break
    return [float(value) for value in solution / size]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")

"""Which factors suit each group of layers: exponents and quantiles, tried on a sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.algorithms.smoothing import Candidate, SmoothingTrial
from qcompiler.calibration.runner import Statistics
from qcompiler.numerics.parallel import on_all_cores
from qcompiler.recipe import SmoothingOptions
from qcompiler_passes.prepare.smoothing_groups import Group

__all__ = ["Tried", "search"]

_QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_PROBED = 0.95  # the quantile that tells whether levelling is anything for a layer
_FINER = 0.05  # around the best of the grid
_WORSE = 1.25  # a loss so much above the least is more than chance of the sample

Tried = list[Candidate]  # the first is without smoothing; empty: not measured


def search(
    groups: Sequence[Group], statistics: Statistics, options: SmoothingOptions
) -> list[tuple[Candidate | None, Tried]]:
    """For each group the best candidate (None: it was not measured), and all that were tried."""
    trials = on_all_cores(lambda group: _trial(group, statistics), groups)
    tried = on_all_cores(lambda trial: _try(trial, options), trials)
    if options.alpha != "auto":
        return [(item[1] if item else None, item) for item in tried]
    if options.criterion == "block":
        return _by_block(groups, tried)
    return [(min(item, key=_loss) if item else None, item) for item in tried]


def _loss(item: Candidate) -> float:
    return item.loss


def _try(trial: SmoothingTrial | None, options: SmoothingOptions) -> Tried:
    if trial is None:
        return []
    if options.alpha != "auto":
        return [trial.without(), trial.exponent(float(options.alpha or 0.0))]
    worse = np.inf if options.criterion == "block" else _WORSE  # blocks compare all with all
    tried = [trial.without()]
    tried += _until_worse(trial.exponent, sorted(options.grid, reverse=True), worse)
    probed = trial.level(_PROBED)
    if probed.loss <= worse * min(tried, key=_loss).loss:
        level = {_PROBED: probed}
        tried += _until_worse(lambda q: level.get(q) or trial.level(q), _QUANTILES, worse)
    best = min(tried, key=_loss).alpha
    if best is not None and options.criterion == "layer":
        finer = (round(best - _FINER, 6), round(best + _FINER, 6))
        tried += [trial.exponent(alpha) for alpha in finer if 0.0 <= alpha <= 1.0]
    return tried


def _until_worse(
    make: Callable[[float], Candidate], arguments: Sequence[float], worse: float
) -> Tried:
    """Candidates from the most even activation to the most even weights, as far as it pays.

    On this way the error of the activation grows and that of the weights falls: once the loss is
    ``worse`` times the least so far, what follows is worse still.
    """
    found: Tried = []
    least = np.inf
    for argument in arguments:
        found.append(make(argument))
        if found[-1].loss > worse * least:
            break
        least = min(least, found[-1].loss)
    return found


def _by_block(
    groups: Sequence[Group], tried: Sequence[Tried]
) -> list[tuple[Candidate | None, Tried]]:
    """One choice per block: the least sum of the groups' relative losses."""
    blocks: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        if tried[index]:
            blocks.setdefault(group.block or f"%{group.value.name}", []).append(index)
    chosen: dict[int, Candidate] = {}
    for members in blocks.values():
        sums = np.sum([[item.loss for item in tried[i]] for i in members], axis=0)
        best = int(np.argmin(sums))
        chosen.update({i: tried[i][best] for i in members})
    return [(chosen.get(index), item) for index, item in enumerate(tried)]


def _trial(group: Group, statistics: Statistics) -> SmoothingTrial | None:
    name = group.value.name or ""
    summary, rows = statistics.summaries.get(name), statistics.rows(name)
    if summary is None or rows is None or summary.channels is None:
        return None
    if group.fold is None and not group.insertable:
        return None
    ties = None if group.fold is None else group.fold.ties
    seen, count = summary.channels.extremes, summary.channels.rows
    assert group.activation is not None
    return SmoothingTrial(rows, seen, group.weights, group.activation, group.weight, ties, count)

"""Measure the damage that quantizing each node alone does to the model's output.

The damage of a node is the relative error ``||y_i - y|| / ||y||`` of the outputs, ``y_i`` being
those of the model in which node ``i`` alone computes as deployed. It is measured, not modelled:
saturation, rounding of the stored result and all that comes after the node are in it. What makes
it affordable is in ``docs/adr/0008-sensitivity.md``: few samples, the same for every node, and as
many nodes in one run as the batch has rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.padding import Padding
from qcompiler.pipeline.contract import Feed, State
from qcompiler.sensitivity.switchboard import Outputs, Switchboard, sample_of

__all__ = ["SAMPLES", "Ranking", "rank"]

SAMPLES = 2  # measured: more of them do not bring the order nearer to the truth (ADR 0008)
_ROWS = 16
_BATCH_BYTES = 256 << 20  # of the largest value of a run


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """What each planned node does to the output.

    Attributes:
        damage: Relative error of the output by node, in the order of the plan.
        samples: Samples that each node was measured on.
        runs: Runs of the model that it took.
    """

    damage: dict[str, float]
    samples: int
    runs: int

    @property
    def order(self) -> tuple[str, ...]:
        """Nodes, the most damaging first; of equals the earlier one."""
        return tuple(sorted(self.damage, key=lambda node: -self.damage[node]))


def rank(
    planned: ir.Model, state: State, feeds: Sequence[Feed], *, samples: int = SAMPLES
) -> Ranking:
    """Measure every node that the plan quantizes.

    Args:
        planned: The model as ``insert-qdq`` would take it; left as it is.
        state: Its plan, ranges, weights and shapes; left as they are.
        feeds: Where to take samples from, evenly.
        samples: How many of them.

    Raises:
        QcError: The runtime refuses the model with switches, or fails on a feed.
    """
    board = Switchboard.open(planned, state)
    if not board.nodes or not feeds:
        return Ranking({}, 0, 0)
    padding = Padding.of(planned, state.recipe.calibration.mask)
    chosen = _samples(feeds, board.batched, samples)
    by_row = board.takes_rows(chosen[0])
    rows = _rows(state, chosen[0], board) if by_row else 1
    total = np.zeros(len(board.nodes))
    for sample in chosen:
        total += _damages(board, sample, rows, padding)
    damage = np.sqrt(total / len(chosen))
    found = {node: float(x) for node, x in zip(board.nodes, damage, strict=True)}
    return Ranking(found, len(chosen), board.runs)


def _samples(feeds: Sequence[Feed], batched: tuple[str, ...], count: int) -> list[Feed]:
    """``count`` samples, from as many feeds as there are."""
    if not batched:
        picked = np.linspace(0, len(feeds) - 1, min(count, len(feeds))).round().astype(int)
        return [feeds[index] for index in dict.fromkeys(picked.tolist())]
    have = sum(len(feed[batched[0]]) for feed in feeds)
    each = range(min(count, have))
    return [sample_of(feeds[i % len(feeds)], batched, i // len(feeds)) for i in each]


def _rows(state: State, sample: Feed, board: Switchboard) -> int:
    """Rows of a run: as many as memory is good for, at least two."""
    assert state.shapes is not None
    planned_on = state.sample or sample
    batch = max(1, *(len(planned_on[name]) for name in board.batched if name in planned_on))
    largest = max(
        dtype.itemsize * math.prod(shape)
        for dtype, shape in (state.shapes[name] for name in _activations(state))
    )
    return max(2, min(_ROWS, len(board.nodes) + 1, _BATCH_BYTES * batch // max(1, largest)))


def _activations(state: State) -> list[str]:
    assert state.shapes is not None
    assert state.plan is not None
    stored = [name for name in state.plan.values if name in state.shapes]
    return stored or list(state.shapes)


def _damages(
    board: Switchboard, sample: Feed, rows: int, padding: Padding
) -> npt.NDArray[np.float64]:
    """Squared relative error per node on one sample."""
    count = len(board.nodes)
    off = np.zeros((1, count), np.bool_)
    found = np.zeros(count)
    keep = padding.keep(sample)
    want = board.run(sample, off)
    for start in range(0, count, rows):
        indices = range(start, min(start + rows, count))
        switches = np.zeros((len(indices), count), np.bool_)
        switches[np.arange(len(indices)), list(indices)] = True
        got = board.run(board.repeat(sample, len(indices)) if rows > 1 else sample, switches)
        for row, index in enumerate(indices):
            part = {n: x[row : row + 1] for n, x in got.items()} if rows > 1 else got
            found[index] = _error(want, part, padding, keep)
    return found


def _error(
    want: Outputs, got: Outputs, padding: Padding, keep: npt.NDArray[np.bool_] | None
) -> float:
    """Mean over the outputs of ``||got - want||^2 / ||want||^2``; infinite where NaN comes in."""
    shares = []
    floats = [name for name, x in want.items() if x.dtype.kind == "f"]
    for name in floats or [name for name, x in want.items() if x.dtype.kind in "iub"]:
        x, y = want[name], got[name]
        if keep is not None:
            x, y = padding.cut(x, keep), padding.cut(y, keep)
        a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
        known = np.isfinite(a)
        a, b = a[known], b[known]
        power, error = float(a @ a), float((b - a) @ (b - a))
        share = error / power if power else float(error > 0.0)
        shares.append(share if math.isfinite(share) else math.inf)
    return sum(shares) / len(shares) if shares else 0.0

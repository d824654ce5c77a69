"""Statistics of an activation whose channels are divided by constants, without seeing it again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.calibrators import MinMax, MovingAverage
from qcompiler.calibration.histogram import Histogram
from qcompiler.calibration.rows import Channels, Reservoir
from qcompiler.calibration.summary import TensorSummary

__all__ = ["divided"]


def divided(
    summary: TensorSummary,
    factors: npt.NDArray[np.float64],
    of_others: npt.NDArray[np.float64] | None = None,
) -> TensorSummary:
    """The summary of ``x / factors`` for the summary of ``x``.

    What is kept by channel (mean, extremes, the sample of rows) is divided exactly, and with it
    the extremes of the tensor. A histogram does not know its channels, so it is made anew: the
    sample of rows, scaled to the number of values seen, and one count for each extreme of a channel
    that the sample lacks. The average of the batches' extremes shrinks as they do.

    Args:
        summary: With statistics by channel along the last axis; left as it is.
        factors: Positive, ``[channels]``.
        of_others: See :meth:`~qcompiler.numerics.extremes.Extremes.divided`.

    Raises:
        ValueError: The summary has no statistics by channel, or of other channels.
    """
    channels, reservoir = summary.channels, summary.reservoir
    if channels is None or reservoir is None or len(channels.lo) != len(factors):
        raise ValueError("the summary knows nothing of these channels")
    if not channels.rows:
        return summary
    by_channel = Channels(len(factors))
    by_channel.total = channels.total / factors
    by_channel.extremes = channels.extremes.divided(factors, of_others)
    by_channel.rows = channels.rows
    rows = Reservoir(reservoir.capacity, seed=channels.rows)
    rows.keys = reservoir.keys
    rows.rows = (reservoir.rows / factors).astype(np.float32)
    extremes = MinMax(float(by_channel.lo.min()), float(by_channel.hi.max()))
    return TensorSummary(
        extremes,
        _average(summary, extremes),
        _histogram(summary.histogram, rows.rows, by_channel),
        summary.channel_axis,
        by_channel,
        rows,
    )


def _histogram(seen: Histogram, rows: npt.NDArray[np.float32], channels: Channels) -> Histogram:
    sample, tails = Histogram(), Histogram()
    sample.update(np.ascontiguousarray(rows))
    tails.update(channels.lo[channels.lo < rows.min(axis=0)])
    tails.update(channels.hi[channels.hi > rows.max(axis=0)])
    share = seen.total / max(sample.total, 1)
    counts = np.rint(sample.counts * share).astype(np.int64) + tails.counts
    return Histogram(counts, seen.infinite)


def _average(summary: TensorSummary, extremes: MinMax) -> MovingAverage:
    before, average = summary.extremes, MovingAverage(summary.average.momentum)
    shrunk = np.array(
        (
            extremes.lo / before.lo if before.lo else 1.0,
            extremes.hi / before.hi if before.hi else 1.0,
        )
    )
    average.batches = summary.average.batches
    average.first = summary.average.first * shrunk
    average.mean = summary.average.mean * shrunk
    return average

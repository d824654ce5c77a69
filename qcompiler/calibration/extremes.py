"""Least and greatest value of each channel of some activations: one light pass over the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.rows import as_rows
from qcompiler.diagnostics import Code
from qcompiler.ir.edit import remove_dead
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

__all__ = ["ChannelSpread", "channel_extremes", "channel_spreads"]

_DEFAULT = SessionSettings()
Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]


def channel_extremes(
    model: ir.Model,
    axes: dict[str, int],
    feeds: Iterable[Feed],
    settings: SessionSettings = _DEFAULT,
) -> dict[str, tuple[Floats, Floats]]:
    """Least and greatest value by channel over all feeds.

    Args:
        model: The float model, or one that is lowered; left as it is.
        axes: Axis of the channels, 1 or -1, by the name of a value that a node makes.
        feeds: Checked feeds.
        settings: Options of the session that runs it.

    Returns:
        Two arrays ``[channels]`` for each value.

    Raises:
        QcError: QC607, the runtime cannot run the model.
    """
    found: dict[str, tuple[Floats, Floats]] = {}
    for name, rows in _rows(model, axes, feeds, settings):
        lo, hi = rows.min(axis=0), rows.max(axis=0)
        if name in found:
            lo, hi = np.minimum(lo, found[name][0]), np.maximum(hi, found[name][1])
        found[name] = lo, hi
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelSpread:
    """Where the values of each channel lie, float64 ``[channels]`` each.

    Attributes:
        lo: Least.
        hi: Greatest.
        mean: Mean.
        deviation: Standard deviation.
    """

    lo: Wide
    hi: Wide
    mean: Wide
    deviation: Wide


def channel_spreads(
    model: ir.Model, axes: dict[str, int], feeds: Iterable[Feed]
) -> dict[str, ChannelSpread]:
    """Extremes, mean and deviation by channel over all feeds; see :func:`channel_extremes`."""
    lows: dict[str, Floats] = {}
    highs: dict[str, Floats] = {}
    sums: dict[str, Wide] = {}
    counts: dict[str, int] = {}
    for name, rows in _rows(model, axes, feeds, _DEFAULT):
        lo, hi = rows.min(axis=0), rows.max(axis=0)
        lows[name] = np.minimum(lows.get(name, lo), lo)
        highs[name] = np.maximum(highs.get(name, hi), hi)
        wide = rows.astype(np.float64)  # sums of many floats lose digits
        sums[name] = sums.get(name, np.zeros(1)) + np.stack([wide.sum(0), np.square(wide).sum(0)])
        counts[name] = counts.get(name, 0) + len(rows)
    found = {}
    for name, (first, second) in sums.items():
        mean = first / counts[name]
        deviation = np.sqrt(np.maximum(second / counts[name] - mean**2, 0.0))
        found[name] = ChannelSpread(
            lows[name].astype(np.float64), highs[name].astype(np.float64), mean, deviation
        )
    return found


def _rows(
    model: ir.Model, axes: dict[str, int], feeds: Iterable[Feed], settings: SessionSettings
) -> Iterator[tuple[str, Floats]]:
    """The values ``[rows, channels]`` of each name and feed; nothing runs for no names."""
    if not axes:
        return
    session = open_session(_tapped(model, axes), settings=settings, code=Code.FLOAT_MODEL_FAILS)
    for feed in feeds:
        for name, array in run(session, feed, list(axes)).items():
            yield name, as_rows(array.astype(np.float32, copy=False), axes[name])


def _tapped(model: ir.Model, names: Collection[str]) -> ir.Model:
    copy = model.clone()
    made = [out for node in copy.graph for out in node.outputs if out.name in names]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made)
    remove_dead(copy)
    return copy

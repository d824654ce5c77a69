"""Least and greatest value of each channel of some activations: one light pass over the data."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.rows import as_rows
from qcompiler.diagnostics import Code
from qcompiler.ir.edit import remove_dead
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

__all__ = ["channel_extremes"]

_DEFAULT = SessionSettings()
Floats = npt.NDArray[np.float32]


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
    if not axes:
        return found
    copy = _tapped(model, axes)
    session = open_session(copy, settings=settings, code=Code.FLOAT_MODEL_FAILS)
    for feed in feeds:
        for name, array in run(session, feed, list(axes)).items():
            rows = as_rows(array.astype(np.float32, copy=False), axes[name])
            lo, hi = rows.min(axis=0), rows.max(axis=0)
            if name in found:
                lo, hi = np.minimum(lo, found[name][0]), np.maximum(hi, found[name][1])
            found[name] = lo, hi
    return found


def _tapped(model: ir.Model, names: Collection[str]) -> ir.Model:
    copy = model.clone()
    made = [out for node in copy.graph for out in node.outputs if out.name in names]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made)
    remove_dead(copy)
    return copy

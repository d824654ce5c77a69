"""Weights whose output channels are too unlike for one scale."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.schemes import QSpec

__all__ = ["coarse_channels"]

_COARSE = 0.1  # of the length of a channel's weights: 20 dB


def coarse_channels(value: ir.Value | None, by_channel: QSpec) -> tuple[int, int] | None:
    """How many output channels one scale for all changes by more than a tenth, if most of them.

    Args:
        value: The weight; None, or no constant, tells nothing.
        by_channel: What its kernel takes: where the output channels lie, and the integers' range.

    Returns:
        That number and the number of channels; None when it is not more than half of them.
    """
    array = constant(value)
    if array is None or by_channel.axis is None or not array.size:
        return None
    weight = np.moveaxis(array.astype(np.float64), by_channel.axis, 0).reshape(
        array.shape[by_channel.axis], -1
    )
    scale = np.abs(weight).max() / by_channel.qmax
    if scale == 0.0 or not np.isfinite(scale):
        return None
    error = np.square(np.rint(weight / scale) * scale - weight).sum(axis=1)
    coarse = int((error > _COARSE**2 * np.square(weight).sum(axis=1)).sum())
    return (coarse, len(weight)) if 2 * coarse > len(weight) else None

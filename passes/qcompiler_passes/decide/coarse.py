"""Weights that no scale fits: their channels are too unlike, or all of them vanish."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import constant
from qcompiler.ir.lazy import view_of
from qcompiler.schemes import QSpec

__all__ = ["coarse_channels", "vanishes"]

_COARSE = 0.1  # of the length of a channel's weights: 20 dB
_LEAST = 128 * np.finfo(np.float32).tiny  # 8 bits in steps of the smallest normal number
_FIRST = 4096  # elements that show of nearly every weight that it is larger


def vanishes(value: ir.Value | None) -> bool:
    """Whether a weight is so small that the scale of its integers is no normal float32.

    Such scales are rounded up, and most of the weight would become zeros. Zeros alone are exact,
    and weights of a checkpoint are not read for this.
    """
    if value is None or view_of(value.const_value) is not None:
        return False
    array = constant(value)
    if array is None or not array.size or np.abs(array.reshape(-1)[:_FIRST]).max() >= _LEAST:
        return False
    return bool(0.0 < np.abs(array).max() < _LEAST)


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

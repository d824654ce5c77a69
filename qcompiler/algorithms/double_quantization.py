"""Quantize the scales of a weight again (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3).

The scales of all groups are one vector, by column, which is rounded in groups of its own. The
elements are rounded under the scales that result, not under those that were meant.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.rtn import round_to_nearest, round_with_scale
from qcompiler.numerics.qtensor import QTensor, scale_from_vector, scale_vector
from qcompiler.schemes import QSpec

__all__ = ["with_quantized_scales"]


def with_quantized_scales(
    tensor: QTensor, scales: QSpec, weight: npt.NDArray[np.floating] | None = None
) -> QTensor:
    """The same weight with its scales stored under ``scales``.

    Args:
        tensor: A rounded weight with float scales.
        scales: Spec of the vector of scales: BLOCK along axis 0.
        weight: What ``tensor`` rounds: its elements are rounded again, to nearest. None leaves
            them, as an algorithm that passes errors on wants it.
    """
    vector = scale_vector(tensor.scale, tensor.spec)
    stored = round_to_nearest(vector, scales)
    floats = stored.dequantize().astype(np.float32)
    scale = scale_from_vector(floats, tensor.scale.shape, tensor.spec)
    spec = dataclasses.replace(tensor.spec, scales=scales)
    if weight is None:
        return dataclasses.replace(tensor, scale=scale, spec=spec, stored_scale=stored)
    zeros = tensor.zero_point
    zeros = np.zeros(scale.shape, np.int32) if zeros is None else zeros
    # a scale may be rounded to 0: what it stands for is 0 whatever its elements are
    divisor = np.where(scale == 0, np.float32(1), scale)
    again = round_with_scale(np.asarray(weight, np.float32), divisor, zeros, tensor.spec)
    return QTensor(again.q, scale, again.zero_point, spec, stored)

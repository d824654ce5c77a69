"""Round a weight of a weight-only kernel as a recipe says, from nothing but the weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt

from qcompiler.algorithms.data_free import HqqOptions, RtnOptions, hqq, k_quant, rtn
from qcompiler.algorithms.double_quantization import with_quantized_scales
from qcompiler.numerics.qtensor import QTensor
from qcompiler.recipe import Recipe
from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Form

__all__ = ["round_alone"]


def round_alone(
    weight: npt.NDArray[Any],
    spec: QSpec,
    algorithm: str,
    recipe: Recipe,
    form: Form,
    *,
    where: str,
) -> QTensor:
    """The rounded weight, with its scales where they are quantized too.

    Negative scales, which the full range may want, are for the runtime that is known to take them.

    Args:
        weight: What is rounded.
        spec: How it is stored.
        algorithm: ``hqq`` or ``k-quant``; all others begin with rounding to nearest.
        recipe: Its tables ``hqq`` and ``rtn``.
        form: The artifact's.
        where: Name of the weight, for messages.
    """
    plain, ours = dataclasses.replace(spec, scales=None), form is Form.ORT
    if algorithm == "hqq":
        tensor = hqq(
            weight, plain, HqqOptions(**recipe.hqq.model_dump()), full_range=ours, where=where
        )
    elif algorithm == "k-quant":
        tensor = k_quant(weight, plain, full_range=ours, where=where)
    else:
        options = RtnOptions(**recipe.rtn.model_dump())
        options = dataclasses.replace(options, full_range=options.full_range and ours)
        tensor = rtn(weight, plain, options, where=where)
    return tensor if spec.scales is None else with_quantized_scales(tensor, spec.scales, weight)

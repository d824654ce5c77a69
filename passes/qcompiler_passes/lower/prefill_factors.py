"""Factors that level the channels of what int8 products of prompts read, as SmoothQuant.

A row of activations has one scale, so that one large channel takes the resolution of all others. It
is divided by a factor that its row of the weight is multiplied by. No node divides: the gain of the
normalization before the product does, or the column scales of the product before.
Formula: Xiao et al. 2022 (arXiv 2211.10438), ``s_k = max|x_k|^a / max|w_k|^(1 - a)``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.extremes import channel_extremes
from qcompiler.ir.edit import constant
from qcompiler.numerics.byte_columns import dequantized
from qcompiler.pipeline.contract import State

__all__ = ["PrefillFactors", "find_factors"]

Floats = npt.NDArray[np.float32]

_FEEDS = 8  # that tell the largest values
_ALPHA = 0.65  # where the recipe leaves it to us
_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization")
_REACH = 256.0  # largest factor by smallest: the weights' own channels must not drown
_BIAS = 5  # input of MatMulNBits


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillFactors:
    """What is divided in the path for prompts, and what is multiplied for it.

    Attributes:
        rows: ``[K]`` by value that products read: rows of their weights are multiplied.
        gains: ``[K]`` by normalization: gain and bias are divided.
        columns: ``[N]`` by product: the scales of its columns are divided.
    """

    rows: Mapping[ir.Value, Floats] = dataclasses.field(default_factory=dict)
    gains: Mapping[ir.Node, Floats] = dataclasses.field(default_factory=dict)
    columns: Mapping[ir.Node, Floats] = dataclasses.field(default_factory=dict)


def find_factors(
    model: ir.Model, products: Collection[ir.Node], state: State
) -> PrefillFactors | None:
    """Factors for all values that only products read and something before can divide.

    Args:
        model: Lowered, without the second path.
        products: Its ``MatMulNBits`` nodes.
        state: With data, session options, and the recipe's ``smoothing.alpha``.

    Returns:
        None where there is no data that can be read again, or the recipe has smoothing off.

    Raises:
        QcError: QC607, the runtime cannot run the model.
    """
    alpha = state.recipe.smoothing.alpha
    if alpha is None or state.feeds is None or not state.feeds.reiterable:
        return None
    places = {}
    for x in dict.fromkeys(node.inputs[0] for node in products):
        place = None if x is None else _place(x, products)
        if x is not None and place is not None:
            places[x] = place
    feeds = itertools.islice(state.feeds, _FEEDS)
    axes = {str(x.name): -1 for x in places}
    extremes = channel_extremes(model, axes, feeds, state.session)
    rows: dict[ir.Value, Floats] = {}
    gains: dict[ir.Node, Floats] = {}
    columns: dict[ir.Node, Floats] = {}
    for x, place in places.items():
        lo, hi = extremes[str(x.name)]
        largest = np.maximum(np.abs(lo), np.abs(hi))
        weight = np.max([_row_sizes(use.node) for use in x.uses()], axis=0)
        factors = _factors(largest, weight, _ALPHA if alpha == "auto" else alpha)
        rows[x] = factors
        (columns if place in products else gains)[place] = factors
    return PrefillFactors(rows, gains, columns)


def _place(x: ir.Value, products: Collection[ir.Node]) -> ir.Node | None:
    """The normalization or product whose constants can take the factors of ``x``."""
    if x.is_graph_output() or any(use.node not in products or use.idx != 0 for use in x.uses()):
        return None
    producer = x.producer()
    if producer is None:
        return None
    if producer.op_type in _NORMS:
        constants = [value for value in producer.inputs[1:] if value is not None]
        return producer if all(value.const_value is not None for value in constants) else None
    if producer.op_type != "Mul" or producer.domain:
        return None
    for value in producer.inputs:
        before = None if value is None else value.producer()
        if value is None or before is None or before not in products or len(value.uses()) != 1:
            continue
        if value.is_graph_output() or any(item is not None for item in before.inputs[_BIAS:]):
            continue
        return before
    return None


def _row_sizes(product: ir.Node) -> Floats:
    """The largest magnitude in each row of a weight, ``[K]``; ones if it is made at load time."""
    k, bits = (product.attributes[name].as_int() for name in ("K", "bits"))
    values = (*product.inputs[1:4], None)[:3]
    if any(value is not None and value.const_value is None for value in values):
        return np.ones(k, np.float32)
    data, scale, zero_point = (constant(value) for value in values)
    assert data is not None
    assert scale is not None
    if zero_point is not None:
        zero_point = zero_point.reshape(len(data), -1)
    numbers = dequantized(data, scale.reshape(data.shape[:2]), zero_point, bits)
    sizes: Floats = np.abs(numbers).max(axis=0)[:k]
    return sizes


def _factors(largest: Floats, weight: Floats, alpha: float) -> Floats:
    """Factors around 1; channels that are zero in data or weight get 1."""
    used = (largest > 0) & (weight > 0)
    factors = np.ones(len(largest), np.float64)
    factors[used] = largest[used] ** alpha / weight[used] ** (1.0 - alpha)
    if used.any():
        factors[used] /= np.exp(np.log(factors[used]).mean())
    return np.clip(factors, _REACH**-0.5, _REACH**0.5).astype(np.float32)

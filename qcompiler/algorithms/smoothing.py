"""Move outliers of activations into weights, judged on a sample of what the layers really read.

SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): with factors ``s`` per input channel,
``X W = (X / s) (s W)`` and ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``. The exponent that is
best differs from layer to layer, so each one is tried on rows of the layer's input with the types
and granularities that will be deployed: the error of the output is that of the rounded activation
plus that of the rounded weight. No model runs for it.

A few channels far above the others, as behind a Gelu, are better served by a second family: level
them down to a quantile of all channels and leave the rest alone, ``s_j = max(1, max|X_j| / q)``.
There it halves the loss of the best exponent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.affine import range_to_params
from qcompiler.numerics.products import small_product
from qcompiler.schemes import Granularity, QSpec

__all__ = ["Candidate", "SmoothingTrial", "factors", "levels"]

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

_LEAST = 1e-5  # of a channel's weights and of a factor
_ROW_ELEMENTS = 1 << 17  # of the sample: 128 rows of 1024 channels
_COLUMNS = 64  # outputs that weights are judged by; channels of a weight are independent
_SKETCH = 32  # random projections of the outputs that activations are judged by
_SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the range of a static activation


def factors(magnitude: Wide, weight: Wide, alpha: float, ties: npt.NDArray[np.intp] | None) -> Wide:
    """SmoothQuant's factors, scaled to a geometric mean of 1.

    Args:
        magnitude: Largest absolute activation by channel; where it is 0 the factor is 1.
        weight: Largest absolute weight by channel, over all layers that read the activation.
        alpha: 0 levels the weights, 1 the activations.
        ties: Channels with one number share a factor (heads that read one value head); None: all
            are free.

    Returns:
        Positive, ``[channels]``.
    """
    alive = magnitude > 0
    if ties is not None:
        magnitude, weight = _largest(magnitude, ties), _largest(weight, ties)
        alive = magnitude > 0
    found = np.ones_like(magnitude)
    a, w = np.maximum(magnitude[alive], _LEAST), np.maximum(weight[alive], _LEAST)
    found[alive] = np.exp(alpha * np.log(a) - (1 - alpha) * np.log(w))
    if alive.any():
        found[alive] /= np.exp(np.log(found[alive]).mean())
    return np.clip(found, _LEAST, 1 / _LEAST)


def levels(magnitude: Wide, quantile: float, ties: npt.NDArray[np.intp] | None) -> Wide:
    """Factors that level the channels above a quantile of all channels that are not 0.

    Args:
        magnitude: Largest absolute activation by channel.
        quantile: Share of the channels that stay as they are.
        ties: See :func:`factors`.

    Returns:
        At least 1, ``[channels]``.
    """
    if ties is not None:
        magnitude = _largest(magnitude, ties)
    alive = magnitude[magnitude > 0]
    bound = float(np.quantile(alive, quantile)) if alive.size else 1.0
    return np.clip(magnitude / max(bound, _LEAST**2), 1.0, 1 / _LEAST)


def _largest(x: Wide, ties: npt.NDArray[np.intp]) -> Wide:
    groups = np.zeros(int(ties.max()) + 1)
    np.maximum.at(groups, ties, x)
    return np.asarray(groups[ties])


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """Factors and what they cost.

    Attributes:
        factors: ``[channels]``.
        loss: Energy of the error over energy of the outputs.
        alpha: The exponent, if they come from one.
        quantile: The quantile, if they level channels.
    """

    factors: Wide
    loss: float
    alpha: float | None = None
    quantile: float | None = None

    def __str__(self) -> str:
        if self.alpha is not None:
            return f"alpha {self.alpha:g}"
        return "none" if self.quantile is None else f"channels levelled above {self.quantile:g}"


class SmoothingTrial:
    """Tries factors on the layers that read one activation.

    Losses are relative: mean square of the error of the outputs over that of the outputs.
    """

    def __init__(
        self,
        rows: Floats,
        lo: Floats,
        hi: Floats,
        weights: Sequence[Floats],
        activation: QSpec,
        weight: QSpec,
        ties: npt.NDArray[np.intp] | None = None,
    ) -> None:
        """Prepare.

        Args:
            rows: Sample of the activation, ``[rows, channels]``.
            lo: Smallest value by channel, of all the data.
            hi: Largest.
            weights: Weight ``[channels, outputs]`` of each layer.
            activation: How the activation will be stored: per tensor, static or dynamic, or by row.
            weight: How weights will be stored: per tensor or per output.
            ties: See :func:`factors`.
        """
        self._rows = np.ascontiguousarray(rows[: max(32, _ROW_ELEMENTS // rows.shape[1])])
        self._lo, self._hi = lo.astype(np.float64), hi.astype(np.float64)
        self._activation, self._weight, self._ties = activation, weight, ties
        together = np.concatenate(weights, axis=1) if len(weights) > 1 else weights[0]
        outputs = together.shape[1]
        largest = np.maximum(together.max(axis=1), -together.min(axis=1))
        self._largest_weight = largest.astype(np.float64)
        self._magnitude = np.maximum(np.abs(self._lo), np.abs(self._hi))
        chosen = np.unique(np.linspace(0, outputs - 1, min(outputs, _COLUMNS)).astype(np.intp))
        self._columns = np.ascontiguousarray(together[:, chosen])
        self._share: float = outputs / len(chosen)
        signs = np.random.default_rng(outputs).integers(0, 2, (outputs, _SKETCH), np.int8)
        projection = (2 * signs - 1).astype(np.float32) / np.float32(np.sqrt(_SKETCH))
        self._sketch = small_product(together, projection)
        energy = np.square(small_product(self._rows, self._sketch), dtype=np.float64).sum()
        self._energy = max(float(energy), np.finfo(np.float64).tiny)

    def without(self) -> Candidate:
        """No smoothing."""
        found = np.ones(len(self._lo))
        return Candidate(found, self.loss(found))

    def exponent(self, alpha: float) -> Candidate:
        """The factors of ``alpha``."""
        found = factors(self._magnitude, self._largest_weight, alpha, self._ties)
        return Candidate(found, self.loss(found), alpha=alpha)

    def level(self, quantile: float) -> Candidate:
        """Channels above the quantile levelled."""
        found = levels(self._magnitude, quantile, self._ties)
        return Candidate(found, self.loss(found), quantile=quantile)

    def loss(self, s: Wide) -> float:
        """Of dividing the activation by ``s`` and multiplying the weights by it."""
        scale = s.astype(np.float32)
        rows = self._rows / scale
        return (self._activation_error(rows, s) + self._weight_error(rows, scale)) / self._energy

    def _activation_error(self, rows: Floats, s: Wide) -> float:
        sketch = np.ascontiguousarray(self._sketch * s.astype(np.float32)[:, None])
        if self._activation.granularity is Granularity.TOKEN:
            lo, hi = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
            return self._rounded(rows, sketch, lo, hi)
        lo, hi = np.float64((self._lo / s).min()), np.float64((self._hi / s).max())
        if self._activation.dynamic:
            return self._rounded(rows, sketch, np.asarray(lo), np.asarray(hi))
        least = np.inf
        for shrink in _SHRINKS:
            error = self._rounded(rows, sketch, np.asarray(lo * shrink), np.asarray(hi * shrink))
            if error > 1.1 * least:
                break
            least = min(least, error)
        return least

    def _rounded(
        self,
        rows: Floats,
        sketch: Floats,
        lo: npt.NDArray[np.floating],
        hi: npt.NDArray[np.floating],
    ) -> float:
        spec = self._activation
        scale, zero_point = range_to_params(np.minimum(lo, 0.0), np.maximum(hi, 0.0), spec)
        error = np.rint(rows / scale)
        np.clip(error, spec.qmin - zero_point, spec.qmax - zero_point, out=error, casting="unsafe")
        error *= scale
        error -= rows
        return float(np.square(small_product(error, sketch), dtype=np.float64).sum())

    def _weight_error(self, rows: Floats, scale: Floats) -> float:
        scaled = self._columns * scale[:, None]
        bound = np.maximum(scaled.max(axis=0), -scaled.min(axis=0))
        if self._weight.granularity is Granularity.TENSOR:
            bound = np.full_like(bound, float((self._largest_weight * scale).max()))
        step = np.maximum(bound / np.float32(self._weight.qmax), np.finfo(np.float32).tiny)
        error = np.rint(scaled / step)
        error *= step
        error -= scaled
        products = small_product(rows, error)
        return self._share * float(np.square(products, dtype=np.float64).sum())

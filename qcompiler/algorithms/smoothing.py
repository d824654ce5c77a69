"""Move outliers of activations into weights, judged on a sample of what the layers really read.

SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): with factors ``s`` per input channel,
``X W = (X / s) (s W)`` and ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``. The exponent that is
best differs from layer to layer, so each one is tried on rows of the layer's input with the types
and granularities that will be deployed: the error of the output is that of the rounded activation
plus that of the rounded weight. No model runs for it.

A few channels far above the others, as behind a Gelu, are better served by a second family: level
them down to a quantile of all channels and leave the rest alone, ``s_j = max(1, max|X_j| / q)``.
There it halves the loss of the best exponent.

Factors found on some data fit that data: a channel divided by its own largest value leaves no room
for a larger one, and a channel that was almost still, raised to the level of the others, shouts
when a new speaker wakes it. So the loss has a third part, that of data which was not seen. Each
part of the data is judged by factors and range found on all the others: what it clips there adds
to the error (leave-one-out cross-validation, from
:class:`~qcompiler.numerics.extremes.Extremes`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.numerics.affine import clip_codes, range_to_params
from qcompiler.numerics.extremes import Extremes
from qcompiler.runtime.products import small_product
from qcompiler.schemes import Granularity, QSpec

__all__ = ["Candidate", "SmoothingTrial", "factors", "levels"]

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

_LEAST = 1e-5  # of a channel's weights and of a factor
_STILL = 0.25  # this share of the channels, the smallest, count as large as the next: see factors
_ROW_ELEMENTS = 1 << 17  # of the sample: 128 rows of 1024 channels
_COLUMNS = 256  # outputs that weights are judged by; fewer cost Whisper a half percent of nats
_USUAL = 0.5  # exponent by which these are drawn
_EVEN = 0.1  # of the mean size: also outputs with small weights may be drawn
_SKETCH = 32  # random projections of the outputs that activations are judged by
_SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the range of a static activation


def factors(magnitude: Wide, weight: Wide, alpha: float, ties: npt.NDArray[np.intp] | None) -> Wide:
    """SmoothQuant's factors, scaled to a geometric mean of 1.

    Channels below a low quantile of all count as that quantile: there is nothing to gain from
    raising the smallest ones further, and what they do on other data is unknown.

    Args:
        magnitude: Largest absolute activation by channel; where it is 0 the factor is 1.
        weight: Largest absolute weight by channel, over all layers that read the activation.
        alpha: 0 levels the weights, 1 the activations.
        ties: Channels with one number share a factor (heads that read one value head); None: all
            are free.

    Returns:
        Positive, ``[channels]``.
    """
    return _Logarithms.of(magnitude, weight, ties).factors(alpha)


@dataclasses.dataclass(frozen=True, slots=True)
class _Logarithms:
    """What :func:`factors` needs of magnitudes and weights, for any ``alpha``."""

    alive: npt.NDArray[np.bool_]
    activation: Wide
    weight: Wide

    @classmethod
    def of(cls, magnitude: Wide, weight: Wide, ties: npt.NDArray[np.intp] | None) -> _Logarithms:
        if ties is not None:
            magnitude, weight = _largest(magnitude, ties), _largest(weight, ties)
        alive = magnitude > 0
        a, w = np.maximum(magnitude[alive], _LEAST), np.maximum(weight[alive], _LEAST)
        if a.size:
            a = np.maximum(a, np.quantile(a, _STILL))
        return cls(alive, np.log(a), np.log(w))

    def factors(self, alpha: float) -> Wide:
        found = np.ones(len(self.alive))
        found[self.alive] = np.exp(alpha * self.activation - (1 - alpha) * self.weight)
        if self.alive.any():
            found[self.alive] /= np.exp(np.log(found[self.alive]).mean())
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
        unseen: The part of ``loss`` that is expected on data which were not seen only.
        of_others: The factors found without the part of the data that holds a channel's extreme.
    """

    factors: Wide
    loss: float
    alpha: float | None = None
    quantile: float | None = None
    unseen: float = 0.0
    of_others: Wide | None = None

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
        seen: Extremes,
        weights: Sequence[Floats],
        activation: QSpec,
        weight: QSpec,
        ties: npt.NDArray[np.intp] | None = None,
        count: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            rows: Sample of the activation, ``[rows, channels]``.
            seen: Extremes by channel of all the data.
            weights: Weight ``[channels, outputs]`` of each layer.
            activation: How the activation will be stored: per tensor, static or dynamic, or by row.
            weight: How weights will be stored: per tensor or per output.
            ties: See :func:`factors`.
            count: Rows of all the data; None if the sample is all.
        """
        count = len(rows) if count is None else count
        self._rows = np.ascontiguousarray(rows[: max(32, _ROW_ELEMENTS // rows.shape[1])])
        self._all = _Bounds.of(seen.lo, seen.hi)
        self._others = _Bounds.of(*seen.left_out)
        self._share_of_rows = len(self._rows) / max(count, 1)
        self._activation, self._weight, self._ties = activation, weight, ties
        together = np.concatenate(weights, axis=1) if len(weights) > 1 else weights[0]
        largest = np.maximum(together.max(axis=1), -together.min(axis=1))
        self._largest_weight = largest.astype(np.float64)
        self._logarithms = [
            _Logarithms.of(x.magnitude, self._largest_weight, ties)
            for x in (self._all, self._others)
        ]
        self._weight_energy = np.einsum("cn,cn->c", together, together).astype(np.float64)
        chosen, self._counts = self._sampled(np.abs(together))
        self._columns = np.ascontiguousarray(together[:, chosen])
        outputs = together.shape[1]
        signs = np.random.default_rng(outputs).integers(0, 2, (outputs, _SKETCH), np.int8)
        projection = (2 * signs - 1).astype(np.float32) / np.float32(np.sqrt(_SKETCH))
        self._sketch = small_product(together, projection)
        energy = np.square(small_product(self._rows, self._sketch), dtype=np.float64).sum()
        self._energy = max(float(energy), np.finfo(np.float64).tiny)

    def _sampled(self, weight: Floats) -> tuple[npt.NDArray[np.intp], Wide]:
        """Outputs to judge weights by, and for how many outputs each counts.

        A step is as large as the largest weight of its output, and the error goes with its square:
        a few outputs make most of it. So they are drawn by that (systematic sampling with
        probability proportional to size), at the factors of the usual exponent.
        """
        outputs = weight.shape[1]
        if outputs <= _COLUMNS:
            return np.arange(outputs), np.ones(outputs)
        usual = factors(self._all.magnitude, self._largest_weight, _USUAL, self._ties)
        size = np.square((weight * usual.astype(np.float32)[:, None]).max(axis=0), dtype=np.float64)
        share = size + max(float(size.mean()), _LEAST) * _EVEN
        odds = np.minimum(share * (_COLUMNS / share.sum()), 1.0)
        found = np.nonzero(np.diff(np.floor(np.cumsum(odds) + 0.5), prepend=0.0))[0]
        return found, 1.0 / odds[found]

    def without(self) -> Candidate:
        """No smoothing."""
        ones = np.ones_like(self._all.magnitude)
        return self._candidate(ones, ones)

    def exponent(self, alpha: float) -> Candidate:
        """The factors of ``alpha``."""
        s, of_others = (logs.factors(alpha) for logs in self._logarithms)
        return dataclasses.replace(self._candidate(s, of_others), alpha=alpha)

    def level(self, quantile: float) -> Candidate:
        """Channels above the quantile levelled."""
        s, of_others = (
            levels(x.magnitude, quantile, self._ties) for x in (self._all, self._others)
        )
        return dataclasses.replace(self._candidate(s, of_others), quantile=quantile)

    def _candidate(self, s: Wide, of_others: Wide) -> Candidate:
        scale = s.astype(np.float32)
        rows = self._rows / scale
        seen, unseen = self._activation_error(rows, s, of_others)
        error = seen + unseen + self._weight_error(rows, scale)
        return Candidate(s, error / self._energy, unseen=unseen / self._energy, of_others=of_others)

    def _activation_error(self, rows: Floats, s: Wide, of_others: Wide) -> tuple[float, float]:
        """Of rounding the sample, and what other data add to it."""
        sketch = np.ascontiguousarray(self._sketch * s.astype(np.float32)[:, None])
        lo, hi = self._all.divided(s)
        if self._activation.granularity is Granularity.TOKEN:
            each = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
            return self._rounded(rows, sketch, *each), self._widening(of_others)
        if self._activation.dynamic:
            known = self._rounded(rows, sketch, np.asarray(lo), np.asarray(hi))
            return known, self._widening(of_others)
        least = np.inf, 0.0
        for shrink in _SHRINKS:
            unseen = self._clipping(of_others, shrink)
            if unseen > 1.1 * sum(least):  # known without rounding
                break
            seen = self._rounded(rows, sketch, np.asarray(lo * shrink), np.asarray(hi * shrink))
            errors = seen, unseen
            if sum(errors) > 1.1 * sum(least):
                break
            least = min(least, errors, key=sum)
        return least

    def _clipping(self, s: Wide, shrink: float) -> float:
        """Error of the outputs by what each part clips with factors and range of the others.

        Each channel that reaches beyond the range counts once, in one row.
        """
        lo, hi = self._others.divided(s)
        over = np.maximum(self._all.hi - shrink * hi * s, 0.0)
        under = np.maximum(shrink * lo * s - self._all.lo, 0.0)
        return self._share_of_rows * float((over**2 + under**2) @ self._weight_energy)

    def _widening(self, s: Wide) -> float:
        """Error by the coarser steps of a range found at run time that a part makes wider."""
        lo, hi = self._others.divided(s)
        wider = np.maximum(self._all.hi / s - hi, 0.0) + np.maximum(lo - self._all.lo / s, 0.0)
        levels = self._activation.qmax - self._activation.qmin
        more = float(((wider + (hi - lo)) ** 2 - (hi - lo) ** 2).sum()) / (12.0 * levels**2)
        return self._share_of_rows * more * float(s**2 @ self._weight_energy)

    def _rounded(
        self,
        rows: Floats,
        sketch: Floats,
        lo: npt.NDArray[np.floating],
        hi: npt.NDArray[np.floating],
    ) -> float:
        spec = self._activation
        scale, zero_point = range_to_params(np.minimum(lo, 0.0), np.maximum(hi, 0.0), spec)
        steps = rows / scale
        error = np.rint(steps)
        clip_codes(error, zero_point, spec)
        error -= steps
        products = small_product(error, sketch) * scale
        return float(np.square(products, dtype=np.float64).sum())

    def _weight_error(self, rows: Floats, scale: Floats) -> float:
        scaled = self._columns * scale[:, None]
        bound = np.maximum(scaled.max(axis=0), -scaled.min(axis=0))
        if self._weight.granularity is Granularity.TENSOR:
            bound = np.full_like(bound, float((self._largest_weight * scale).max()))
        step = np.maximum(bound / np.float32(self._weight.qmax), np.finfo(np.float32).tiny)
        scaled /= step
        error = np.rint(scaled)
        error -= scaled
        products = small_product(rows, error) * step
        return float(np.square(products, dtype=np.float64).sum(axis=0) @ self._counts)


@dataclasses.dataclass(frozen=True, slots=True)
class _Bounds:
    """Least and greatest value by channel, and the larger of their magnitudes."""

    lo: Wide
    hi: Wide
    magnitude: Wide

    @classmethod
    def of(cls, lo: Floats, hi: Floats) -> _Bounds:
        a, b = lo.astype(np.float64), hi.astype(np.float64)
        return cls(a, b, np.maximum(np.abs(a), np.abs(b)))

    def divided(self, s: Wide) -> tuple[float, float]:
        """Range of all channels after division by ``s``, 0 in it."""
        return min(float((self.lo / s).min()), 0.0), max(float((self.hi / s).max()), 0.0)

"""Choose a range by what it does to the outputs of the layers that read the tensor.

The error of a tensor is not the error that matters: a channel may meet large weights or none, and
errors of the channels of one row add up or cancel. So candidates are judged on a sample of rows
``X`` by the error of the readers' outputs, ``|(X - Q(X)) W|^2``, or, for a Conv with a kernel, by
``sum_c |w_c|^2 (x_c - Q(x_c))^2`` (see :attr:`qcompiler.calibration.layers.Layer.energy`).

What the sample cannot show is the rare outlier. Its clipping is taken from the exact histogram and
charged to the channels that reach so far. And what no calibration data can show is how far other
data reach: each part of the data is judged as clipped by a range found on all the others
(:attr:`qcompiler.numerics.extremes.Extremes.reach`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.clipping import WIDENED, entropy_range, mse_range, percentile_range
from qcompiler.calibration.histogram import Distribution
from qcompiler.calibration.layers import Layer, sketch
from qcompiler.calibration.rows import Channels
from qcompiler.numerics.affine import range_to_params, round_trip
from qcompiler.numerics.magnitude import unit_of
from qcompiler.runtime.products import small_product
from qcompiler.schemes import QSpec

__all__ = ["Candidate", "Judge", "candidates", "search"]

_PERCENTILES = (99.99, 99.999)
_SHRINKS = (0.9, 0.8, 0.7, 0.6, 0.5)
_REFINEMENTS = (0.95, 0.85)  # of each side of the winner, under asymmetric specs
_HALVINGS = 10
_SAME = 0.005  # ranges nearer than this share of their width are one candidate
_JUDGED_ELEMENTS = 1 << 17  # of the sample: 128 rows of 1024 channels


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A range and the method that proposed it."""

    lo: float
    hi: float
    method: str


class Judge:
    """Error of the outputs of ``layers`` when the rows they read are quantized.

    The error is a mean over rows, in squared units of the outputs, summed over the layers.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.float32],
        layers: Sequence[Layer],
        channels: Channels,
        values: Distribution,
    ) -> None:
        """Prepare the sample; the layers' weights are read here and not kept."""
        self._rows = rows[: max(32, _JUDGED_ELEMENTS // rows.shape[1])]
        mixing = [layer.matrix() for layer in layers if layer.is_mixing]
        self._unit = unit_of(self._rows)
        self._sketch, self._gain = None, 1.0
        if mixing:
            together = np.concatenate(mixing, axis=1)
            unit = unit_of(together)
            if unit != 1.0:
                together /= unit
            # the products are near 1, whatever the rows and the weights are
            self._sketch = sketch(together) / self._unit
            self._gain = (float(unit) * float(self._unit)) ** 2
        spread = [layer.energy for layer in layers if not layer.is_mixing]
        self._energy = np.sum(spread, axis=0) if spread else None
        self._all_energy = np.sum([layer.energy for layer in layers], axis=0)
        self._channels = channels
        self._reach = channels.extremes.reach
        self._values = values

    def error(self, lo: float, hi: float, spec: QSpec, enough: float = np.inf) -> float:
        """Of quantizing with the range; a lower bound of it if that is ``enough`` or more."""
        of_others = self._other_data(lo, hi)
        if of_others >= enough:
            return of_others
        scale, zero_point = range_to_params(np.asarray(lo), np.asarray(hi), spec)
        steps = round_trip(self._rows, scale, zero_point, spec)
        np.subtract(self._rows, steps, out=steps)
        error = 0.0
        if self._sketch is not None:
            error += float(np.square(small_product(steps, self._sketch)).sum()) * self._gain
        if self._energy is not None:
            if self._unit != 1.0:
                steps /= self._unit
            energy = float(np.einsum("rc,rc->c", steps, steps) @ self._energy)
            error += energy * float(self._unit) ** 2
        return error / len(self._rows) + self._unseen_clipping(lo, hi) + of_others

    def _other_data(self, lo: float, hi: float) -> float:
        """What a part of the data clips with a range like this of all the others, per row.

        Each channel that reaches beyond the range counts once, in one row.
        """
        bottom, top = self._reach
        over = np.square(np.maximum(top - hi, 0.0)) + np.square(np.maximum(lo - bottom, 0.0))
        return float(over @ self._all_energy) / max(self._channels.rows, 1)

    def _unseen_clipping(self, lo: float, hi: float) -> float:
        """What the histogram knows of clipping beyond the sample, in the outputs, per row."""
        exact = _clipping(self._values, lo, hi) / max(self._channels.rows, 1)
        if exact == 0.0:
            return 0.0
        over = self._rows - np.clip(self._rows, np.float32(lo), np.float32(hi))
        unseen = exact - float(np.square(over, dtype=np.float64).sum()) / len(self._rows)
        if unseen <= 0.0:
            return 0.0
        top, bottom = (x.astype(np.float64) for x in (self._channels.hi, self._channels.lo))
        weight = np.square(np.maximum(top - hi, 0.0) + np.maximum(lo - bottom, 0.0))
        return unseen * float(weight @ self._all_energy / weight.sum()) if weight.any() else 0.0


def candidates(
    values: Distribution, lo: float, hi: float, spec: QSpec, bins: int
) -> list[Candidate]:
    """Ranges worth judging: those of every method, and shrunk extremes. Doubles are left out.

    Entropy is left out for 8-bit floats, whose levels are not evenly spaced; instead the extremes
    are widened too, see :data:`~qcompiler.calibration.clipping.WIDENED`.
    """
    proposed = [
        Candidate(lo, hi, "minmax"),
        *(Candidate(*percentile_range(values, spec, p), f"percentile {p:g}") for p in _PERCENTILES),
        Candidate(*mse_range(values, spec), "mse"),
        *(Candidate(lo * a, hi * a, f"minmax x {a:g}") for a in _SHRINKS),
    ]
    if spec.is_float8:
        proposed += [Candidate(lo * a, hi * a, f"minmax x {a:g}") for a in WIDENED]
    else:
        proposed.append(Candidate(*entropy_range(values, spec, bins), "entropy"))
    kept: list[Candidate] = []
    for item in proposed:
        near = _SAME * (item.hi - item.lo)
        if all(abs(item.lo - k.lo) + abs(item.hi - k.hi) > near for k in kept):
            kept.append(item)
    return kept


def search(found: Sequence[Candidate], judge: Judge, spec: QSpec) -> tuple[Candidate, float]:
    """The candidate with the least error, refined, and its error.

    The winner is halved while that helps (the outliers may be in a channel nobody reads); then
    each side is shrunk a little on its own.
    """
    best, least = found[0], np.inf
    for item in found:
        error = judge.error(item.lo, item.hi, spec, least)
        if error < least:
            best, least = item, error
    name = f"{best.method}, refined"
    for _ in range(_HALVINGS):
        half = Candidate(best.lo / 2, best.hi / 2, name)
        error = judge.error(half.lo, half.hi, spec, least)
        if error >= least:
            break
        best, least = half, error
    for side in (0, 1):
        for factor in _REFINEMENTS:
            lo = best.lo * (factor if side == 0 or spec.symmetric else 1.0)
            hi = best.hi * (factor if side == 1 or spec.symmetric else 1.0)
            if (lo, hi) == (best.lo, best.hi):
                continue
            error = judge.error(lo, hi, spec, least)
            if error < least:
                best, least = Candidate(lo, hi, name), error
                break
    return best, least


def _clipping(values: Distribution, lo: float, hi: float) -> float:
    """Sum of squared distances to the range of the values outside it."""
    middle = (values.left + values.right) / 2
    over = np.maximum(middle - hi, 0.0) + np.maximum(lo - middle, 0.0)
    return float(np.square(over) @ values.count)

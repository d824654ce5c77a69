"""Ranges from a distribution alone: percentile, entropy, least squared error. Pure functions.

All ranges lie within the observed extremes, those of 8-bit floats within twice these; under a
symmetric spec ``lo == -hi``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.histogram import Distribution
from qcompiler.numerics.affine import range_to_params, round_trip
from qcompiler.schemes import QSpec

__all__ = ["WIDENED", "entropy_range", "mse_range", "percentile_range", "squared_error"]

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]

_SHRINKS = np.linspace(1.0, 0.2, 17)  # steps of 5 %; below a fifth clipping never paid
_SIDE_SHRINKS = np.array((1.0, 0.975, 0.95, 0.925, 0.9, 0.8, 0.7, 0.6))
# Where the steps of a float double depends on the scale: up to the next power of two a wider range
# clips nothing, costs no resolution, and may put the bulk of the values where steps are finer.
WIDENED = (1.125, 1.25, 1.5, 1.75)
_FINEST = 2.0**-12  # bins this much smaller than the range are far inside one 8-bit step
_EPSILON = 1e-4  # mass given to empty bins of the quantized distribution, as counts
_THRESHOLDS = 64  # candidate ranges of the entropy search


def percentile_range(values: Distribution, spec: QSpec, percentile: float) -> Range:
    """The range that holds ``percentile`` percent of the values, half of the rest on each side.

    Under a symmetric spec the share is of ``|x|``.
    """
    share = percentile / 100.0
    if spec.symmetric:
        bound = values.magnitudes().quantile(share)
        return -bound, bound
    tail = (1.0 - share) / 2.0
    return values.quantile(tail), values.quantile(1.0 - tail)


def mse_range(values: Distribution, spec: QSpec) -> Range:
    """The range with the least expected squared error among shrunk ones.

    First both sides are shrunk together, then each side on its own from there. For 8-bit floats
    widened ranges are tried as well.
    """
    lo, hi = _observed(values, spec)
    if spec.is_float8:
        return _best(values, spec, [(lo * a, hi * a) for a in (*_SHRINKS, *WIDENED)])
    values = values.coarse(max(-lo, hi) * _FINEST)
    lo, hi = _best(values, spec, [(lo * a, hi * a) for a in _SHRINKS])
    if not spec.symmetric:
        lo, hi = _best(values, spec, [(lo * a, hi) for a in _SIDE_SHRINKS if lo < 0] or [(lo, hi)])
        lo, hi = _best(values, spec, [(lo, hi * a) for a in _SIDE_SHRINKS if hi > 0] or [(lo, hi)])
    return lo, hi


def squared_error(values: Distribution, lo: Floats, hi: Floats, spec: QSpec) -> Floats:
    """Expected sum of squared errors of quantizing with each of several ranges.

    Values are taken as uniform within their bin, where the integral of the squared error has a
    closed form. With ``u = x / scale`` the error of rounding is ``u - rint(u)`` and an
    antiderivative of its square is ``(rint(u) + 4 (u - rint(u))**3) / 12``: each whole step adds
    1/12. Outside the range the error is the distance to its end, whose square has the
    antiderivative ``d**3 / 3``.

    Args:
        values: The distribution; ``bins`` bins.
        lo: Lower ends ``[ranges]``.
        hi: Upper ends ``[ranges]``.
        spec: The integer type; of an 8-bit float the error in the middle of each bin counts, whose
            width is at most a sixteenth of a step of the type.

    Returns:
        float64 ``[ranges]``.
    """
    scale, zero_point = range_to_params(lo, hi, spec)
    if spec.is_float8:
        centres = ((values.left + values.right) / 2)[None].astype(np.float32)
        off = centres - round_trip(centres, scale[:, None], zero_point[:, None], spec)
        return np.asarray(np.square(off.astype(np.float64)) @ values.count)
    scale = scale.astype(np.float64)[:, None]
    # the representable ends after rounding the zero point, in steps
    least = (spec.qmin - zero_point.astype(np.float64))[:, None]
    most = (spec.qmax - zero_point.astype(np.float64))[:, None]
    width = values.right - values.left
    left, right = values.left / scale, values.right / scale
    steps = np.maximum(right - left, 1e-9)  # point masses and bins far below a step
    mean_square = (_integral(right, least, most) - _integral(left, least, most)) / steps
    # a bin much narrower than a step: the difference of integrals cancels, its middle is exact
    middle = (left + right) / 2
    point = (middle - np.clip(np.rint(middle), least, most)) ** 2
    narrow = (right - left) < 1e-4
    mean_square = np.where(narrow | (width == 0), point, mean_square)
    return np.asarray(np.einsum("rb,b->r", mean_square * scale**2, values.count))


def entropy_range(values: Distribution, spec: QSpec, bins: int = 2048) -> Range:
    """The range whose quantized distribution diverges least from the clipped one.

    The method of Migacz, "8-bit inference with TensorRT" (GTC 2017): for each candidate, ``p`` is
    the histogram inside the range with all that lies outside added to its end bins, ``q`` is the
    histogram inside the range merged into as many groups as the type has levels and spread evenly
    over the bins of a group that are not empty; the candidate with the least KL(p || q) wins.
    Here a candidate shrinks both sides together, so that it serves asymmetric types as well; the
    published method is the case of ``|x|``. Zero and the ends of the range are integers exactly, so
    zeros are left out and the end bins keep their counts: otherwise the peaks that Relu and Clip
    make there, spread over their group, would look like a loss and any range that cuts them off
    like a gain.

    Args:
        values: The distribution.
        spec: The integer type.
        bins: Equal bins over the observed range.
    """
    lo, hi = _observed(values, spec)
    if spec.symmetric:
        values, lo = values.magnitudes(), 0.0
    if hi <= lo:
        return _ends(lo, hi, spec)
    values = values.without_zero()
    counts = values.linear(lo, hi, bins)
    levels = spec.qmax - spec.qmin + 1
    levels = (levels + 1) // 2 if spec.symmetric else levels
    zero = round(-lo / (hi - lo) * bins)  # both sides shrink towards the bin of 0
    shares = np.linspace(1.0, min(1.0, levels / bins), _THRESHOLDS)
    first = zero - np.rint(zero * shares).astype(np.int64)
    last = zero + np.maximum(1, np.rint((bins - zero) * shares).astype(np.int64))
    last = np.minimum(bins, last)
    wide = last - first >= levels
    wide[0] = True  # all bins are a candidate, however few they are
    best = int(np.argmin(_divergences(counts, first[wide], last[wide], levels)))
    width = (hi - lo) / bins
    return _ends(lo + first[wide][best] * width, lo + last[wide][best] * width, spec)


def _divergences(
    counts: Floats, first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], levels: int
) -> Floats:
    """KL(p || q) of each candidate, ``counts[first:last]``; see :func:`entropy_range`.

    ``q`` is constant over the filled bins of a group, so that sums over a group, differences of
    running sums over all bins, are all that is needed. With ``p`` and ``q`` not yet divided by
    their sums ``P`` and ``Q`` the divergence is ``sum p log(p / q) / P - log P + log Q``.
    """
    groups = min(levels, int(last[0] - first[0]))
    edges = first[:, None] + np.arange(groups + 1) * (last - first)[:, None] // groups
    sums, filled, entropies = (
        np.diff(np.concatenate(([0.0], np.cumsum(x)))[edges], axis=1)
        for x in (counts, counts > 0, _x_log_x(counts))
    )
    means = sums / np.maximum(filled, 1.0)
    empty = np.diff(edges, axis=1) - filled
    p_log_p = entropies.sum(axis=1)
    p_log_q = ((sums + _EPSILON * filled) * np.log(means + _EPSILON)).sum(axis=1)
    p_log_q += empty.sum(axis=1) * _EPSILON * np.log(_EPSILON)
    inside = sums.sum(axis=1)
    below = np.concatenate(([0.0], np.cumsum(counts)))[first]
    p_sum, q_sum = np.full_like(inside, counts.sum()), inside.copy()
    # the end bins: p has what lies outside as well, q the count of the bin itself
    for place, mean, outside in (
        (first, means[:, 0], below),
        (last - 1, means[:, -1], p_sum - inside - below),
    ):
        count = counts[place]
        spread = np.where(count > 0, mean, 0.0)
        p_log_p += _x_log_x(count + outside) - _x_log_x(count)
        p_log_q += (count + outside + _EPSILON) * np.log(count + _EPSILON)
        p_log_q -= (count + _EPSILON) * np.log(spread + _EPSILON)
        q_sum += count - spread
    p_sum, q_sum = (x + (last - first) * _EPSILON for x in (p_sum, q_sum))
    return np.asarray((p_log_p - p_log_q) / p_sum - np.log(p_sum) + np.log(q_sum))


def _x_log_x(count: Floats) -> Floats:
    return np.asarray((count + _EPSILON) * np.log(count + _EPSILON))


def _integral(u: Floats, least: Floats, most: Floats) -> Floats:
    """Antiderivative in ``u`` of the squared error in steps, zero at ``u = 0``."""
    inside = np.clip(u, least, most)
    whole = np.rint(inside)
    rounding, clipping = inside - whole, u - inside
    # products: numpy's ** 3 is a call of pow for each element
    rounding = rounding * rounding * rounding
    clipping = clipping * clipping * clipping
    return np.asarray(whole / 12.0 + rounding / 3.0 + clipping / 3.0)


def _best(values: Distribution, spec: QSpec, ranges: list[Range]) -> Range:
    lo, hi = np.array(ranges).T
    winner = int(np.argmin(squared_error(values, lo, hi, spec)))
    return ranges[winner]


def _observed(values: Distribution, spec: QSpec) -> Range:
    lo, hi = float(values.left[0]), float(values.right[-1])
    return _ends(min(lo, 0.0), max(hi, 0.0), spec)


def _ends(lo: float, hi: float, spec: QSpec) -> Range:
    if not spec.symmetric:
        return lo, hi
    bound = max(-lo, hi)
    return -bound, bound

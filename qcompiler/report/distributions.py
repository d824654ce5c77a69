"""Histograms of what was quantized, activations and weights, small enough for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from qcompiler.calibration.runner import Statistics
    from qcompiler.calibration.summary import TensorSummary
    from qcompiler.numerics.qtensor import QTensor
    from qcompiler.pipeline.contract import TensorRange

__all__ = ["activation_ranges", "weight_ranges"]

_BINS = 48
_SAMPLE = 1 << 14  # elements of a weight that are counted: the shape of a histogram needs no more
_MOST = 1000  # weights with a histogram; a model with more has them in blocks that look alike
_BULK = 0.999  # share of the values that "the bulk" holds


def activation_ranges(
    ranges: Mapping[str, TensorRange], statistics: Statistics | None
) -> dict[str, dict[str, Any]]:
    """The chosen range of each calibrated value beside what calibration saw of it.

    Returns:
        By value name: ``lo``, ``hi`` (chosen; numbers, or lists when there are several scales) and
        ``method``; where the value was calibrated in this compile also ``label`` (the user's name),
        ``seen_lo``, ``seen_hi``, ``clipped`` (share of the values outside the range), ``bulk``
        (width that holds 99.9 % of the values, as share of the chosen width) and ``histogram``
        (``lo``, ``hi``, ``counts`` in equal bins from ``lo`` to ``hi``).
    """
    found = {}
    for name, item in ranges.items():
        entry: dict[str, Any] = {
            "lo": item.lo.tolist(),
            "hi": item.hi.tolist(),
            "method": item.method,
        }
        summary = statistics.summaries.get(name) if statistics is not None else None
        if statistics is not None and summary is not None and not summary.is_empty:
            entry["label"] = statistics.labels.get(name, name)
            entry.update(_seen(summary, float(item.lo.min()), float(item.hi.max())))
        found[name] = entry
    return found


def weight_ranges(weights: Mapping[tuple[str, int], QTensor]) -> list[dict[str, Any]]:
    """Each quantized weight: the range its scales span, and a histogram of a sample of it.

    Returns:
        Per weight: ``node``, ``input``, ``spec``, ``shape``, ``lo`` and ``hi`` (the extremes that
        its scales can represent; over all channels), ``narrowest`` (the width of the narrowest
        channel's range as share of the widest), ``bits`` (entropy of the stored integers: how many
        of the bits carry information) and ``histogram``. A weight that several nodes share is
        listed for the first; at most 1000 are listed.
    """
    found: list[dict[str, Any]] = []
    seen: set[int] = set()
    for (node, index), tensor in weights.items():
        if id(tensor) in seen or not tensor.q.size:
            continue
        if len(found) == _MOST:
            break
        seen.add(id(tensor))
        found.append({"node": node, "input": index, **_weight(tensor)})
    return found


def _seen(summary: TensorSummary, lo: float, hi: float) -> dict[str, Any]:
    least, most = summary.extremes.lo, summary.extremes.hi
    values = summary.histogram.distribution(least, most)
    total = values.total
    if not total:
        return {"seen_lo": least, "seen_hi": most}
    outside = float(values.count[(values.right < lo) | (values.left > hi)].sum())
    tail = (1.0 - _BULK) / 2
    bulk = values.quantile(1.0 - tail) - values.quantile(tail)
    entry: dict[str, Any] = {
        "seen_lo": least,
        "seen_hi": most,
        "clipped": _short(outside / total),
        "bulk": _short(bulk / (hi - lo)) if hi > lo else 1.0,
    }
    if most > least:
        counts = np.rint(values.linear(least, most, _BINS)).astype(np.int64)
        entry["histogram"] = {"lo": least, "hi": most, "counts": counts.tolist()}
    return entry


def _weight(tensor: QTensor) -> dict[str, Any]:
    spec = tensor.spec
    sample = _sample(tensor)
    scale = tensor.scale.astype(np.float64)
    zero = np.zeros_like(scale) if tensor.zero_point is None else tensor.zero_point
    lo, hi = (spec.qmin - zero) * scale, (spec.qmax - zero) * scale
    widest = float((hi - lo).max())
    entry: dict[str, Any] = {
        "spec": str(spec),
        "shape": list(tensor.q.shape),
        "lo": _short(float(lo.min())),
        "hi": _short(float(hi.max())),
        "narrowest": _short(float((hi - lo).min()) / widest) if widest > 0 else 1.0,
    }
    if tensor.q.dtype.kind in "iu":
        entry["bits"] = _entropy(tensor.q.reshape(-1)[_places(tensor.q.size)])
    least, most = float(sample.min()), float(sample.max())
    if math.isfinite(least) and math.isfinite(most) and most > least:
        counts, _ = np.histogram(sample, _BINS, (least, most))
        entry["histogram"] = {"lo": _short(least), "hi": _short(most), "counts": counts.tolist()}
    return entry


def _places(size: int) -> npt.NDArray[np.intp]:
    """Evenly spaced places of a tensor of ``size`` elements, the same on every run.

    The step is odd: with an even one a weight whose rows are a power of two long would be sampled
    in the same few columns over and over.
    """
    return np.arange(0, size, max(1, size // _SAMPLE) | 1)


def _sample(tensor: QTensor) -> npt.NDArray[np.float64]:
    """Sampled elements as the numbers they stand for; nothing of the tensor's size is made."""
    places = _places(tensor.q.size)
    index = np.unravel_index(places, tensor.q.shape)
    at = []
    for axis, (position, have) in enumerate(zip(index, tensor.scale.shape, strict=True)):
        size = tensor.q.shape[axis]
        if have == size:
            at.append(position)
        elif have == 1:
            at.append(np.zeros_like(position))
        else:
            at.append(position // (tensor.spec.group_size or -(-size // have)))
    where = tuple(at)
    q = tensor.q.reshape(-1)[places].astype(np.float64)
    if tensor.zero_point is not None:
        q -= tensor.zero_point[where]
    return q * tensor.scale[where]


def _entropy(q: npt.NDArray[np.generic]) -> float:
    """Shannon entropy of the integers in bits."""
    counts = np.bincount(q.astype(np.int64) - int(q.min()))  # at most 2^16 levels
    share = counts[counts > 0] / len(q)
    return round(float(-(share * np.log2(share)).sum()), 2)


def _short(number: float) -> float:
    """Six digits: what a reader sees; a report holds thousands of these."""
    return float(f"{number:.6g}")

"""Whether the calibration data tell what other data do: said of what smoothing found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qcompiler.algorithms.smoothing import Candidate
from qcompiler.calibration.summary import TensorSummary
from qcompiler.diagnostics import Code, Diagnostic

__all__ = ["coverage"]

_MUCH = 0.5  # share of the expected error that is on data which were not seen


def coverage(
    chosen: Mapping[str, Candidate],
    summaries: Mapping[str, TensorSummary],
    labels: Mapping[str, str],
) -> Iterator[Diagnostic]:
    """Tell of activations whose ranges the data do not settle.

    Args:
        chosen: The candidate that was taken, by value name.
        summaries: By value name.
        labels: What to call a value to the user.
    """
    if chosen and all(_is_one_part(summaries[name]) for name in chosen):
        yield Diagnostic(
            Code.UNCOVERED,
            "calibration",
            "the data are one sample or one batch: how far other data reach is not known",
            values={"parts": 1},
        )
    shares = {name: item.unseen / item.loss for name, item in chosen.items() if item.loss > 0.0}
    much = {name: share for name, share in shares.items() if share > _MUCH}
    if much:
        worst = max(much, key=much.__getitem__)
        where = labels.get(worst, f"%{worst}")
        yield Diagnostic(
            Code.UNCOVERED,
            where,
            f"{much[worst]:.0%} of the expected error is on data beyond what was seen, the most of "
            f"{len(much)} such activations among {len(chosen)}",
            values={
                "shares": {labels.get(name, f"%{name}"): share for name, share in much.items()}
            },
        )


def _is_one_part(summary: TensorSummary) -> bool:
    channels = summary.channels
    return channels is not None and bool(np.isinf(channels.extremes.next_hi).all())

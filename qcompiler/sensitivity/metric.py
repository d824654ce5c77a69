"""How good is an artifact? The user's metric, or how near the outputs are to float's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import tensors_of

__all__ = ["Judge", "Metric", "MetricFailed", "Run", "fidelity"]

Run = Callable[[Feed], Mapping[str, npt.NDArray[Any]]]
Metric = Callable[[Run], float]  # higher is better


class MetricFailed(Exception):  # noqa: N818 - it never leaves the package
    """The metric raised, or gave no finite number; holds what to tell the user."""

    def __init__(self, message: str) -> None:
        self.diagnostic = Diagnostic(
            Code.METRIC_FAILED,
            "metric",
            message,
            "the metric takes a callable (feed -> outputs by name) and returns a finite number,"
            " higher being better",
        )
        super().__init__(message)


@dataclasses.dataclass
class Judge:
    """Scores artifacts and says how far each falls below float.

    Attributes:
        metric: What to maximise.
        name: What to call it.
        reference: Score of the float model.
        kind: Whether a drop is a share of the reference or a difference from it.
        generated: Whether it is judged on a made-up input, for want of data.
        evaluations: Artifacts scored so far.
    """

    metric: Metric
    name: str
    reference: float
    kind: Literal["relative", "absolute"]
    generated: bool = False
    evaluations: int = 0

    @classmethod
    def of(
        cls, metric: Metric | None, run_float: Run, feeds: Sequence[Feed], padding: Padding,
        kind: Literal["relative", "absolute"],
    ) -> Judge:  # fmt: skip
        """A judge by ``metric``, or by :func:`fidelity` on ``feeds`` when there is none.

        Raises:
            MetricFailed: The metric fails on the float model.
        """
        if metric is None:
            return cls(fidelity(run_float, feeds, padding), "cosine", 1.0, kind)
        name = getattr(metric, "__name__", "") or type(metric).__name__
        return cls(metric, name, _value(metric, run_float, "the float model"), kind)

    def score(self, run: Run) -> float:
        """The score of an artifact.

        Raises:
            MetricFailed: The metric raises or gives no finite number.
        """
        self.evaluations += 1
        return _value(self.metric, run, f"artifact {self.evaluations}")

    def drop(self, score: float) -> float:
        """How far ``score`` is below the reference; negative when above."""
        lost = self.reference - score
        return lost / (abs(self.reference) or 1.0) if self.kind == "relative" else lost


def fidelity(reference: Run, feeds: Sequence[Feed], padding: Padding) -> Metric:
    """The default metric: cosine of the outputs with float's over all feeds, of the worst output.

    The float outputs are computed at the first use and kept.
    """
    wanted: list[dict[str, npt.NDArray[np.float64]]] = []

    def metric(run: Run) -> float:
        if not wanted:
            wanted.extend(_numbers(reference(feed), feed, padding) for feed in feeds)
        sums: dict[str, npt.NDArray[np.float64]] = {}
        for feed, want in zip(feeds, wanted, strict=True):
            got = _numbers(run(feed), feed, padding)
            for name, a in want.items():
                b = got.get(name)
                if b is None or a.shape != b.shape:
                    return 0.0
                known = np.isfinite(a)
                a, b = a[known], b[known]
                sums.setdefault(name, np.zeros(3))
                sums[name] += (a @ a, b @ b, a @ b)
        return min((_cosine(*map(float, item)) for item in sums.values()), default=1.0)

    return metric


def _numbers(
    outputs: Mapping[str, npt.NDArray[Any]], feed: Feed, padding: Padding
) -> dict[str, npt.NDArray[np.float64]]:
    keep = padding.keep(feed)
    found = {}
    for name, x in tensors_of(outputs).items():
        if x.dtype.kind in "fiub":
            kept = x if keep is None else padding.cut(x, keep)
            found[name] = kept.astype(np.float64).ravel()
    return found


def _cosine(aa: float, bb: float, ab: float) -> float:
    if not math.isfinite(bb):
        return 0.0
    norm = math.sqrt(aa * bb)
    return min(ab / norm, 1.0) if norm else float(aa == bb)


def _value(metric: Metric, run: Run, of: str) -> float:
    try:
        value = float(metric(run))
    except Exception as error:  # the user's code may raise anything
        raise MetricFailed(f"raised {type(error).__name__} on {of}: {error}") from error
    if not math.isfinite(value):
        raise MetricFailed(f"gave {value} on {of}, wanted a finite number")
    return value

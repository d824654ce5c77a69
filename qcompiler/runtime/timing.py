"""Latency of one session against another: interleaved runs, medians."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import run

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["LatencyComparison", "clear_round", "compare_latency"]

_LEAST_RUNS = 3
_MOST_RUNS = 200
# When the answer is clear: one round in either order, over so many seconds; each of them
# says that the second session is faster by this ratio, and they agree within the spread.
_CLEAR_RUNS = 2
_CLEAR_SECONDS = 0.1
_CLEAR_RATIO = 1.25
_CLEAR_SPREAD = 1.1
_LEAST_PROFILED = 0.02  # seconds; the profiler's share of a shorter run is not small


@dataclasses.dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Medians of interleaved runs.

    Attributes:
        a_ms: Median milliseconds of a run of the first session.
        b_ms: Of the second.
        ratio: Median of ``a / b`` over rounds of neighbouring runs: above 1, the second is faster.
        runs: Rounds measured.
    """

    a_ms: float
    b_ms: float
    ratio: float
    runs: int


def compare_latency(
    a: ort.InferenceSession,
    b: ort.InferenceSession,
    feed: Feed,
    seconds: float,
    *,
    until_clear: bool = False,
) -> LatencyComparison:
    """Time two sessions on one feed, in turn, so that a busy machine disturbs both alike.

    The order alternates from round to round. The first run of a session after the other's does not
    count. The ratio is the median of the rounds' ratios and not the ratio of the medians: load
    that lasts longer than a round cancels.

    Args:
        a: First session (the float model).
        b: Second session (the artifact).
        feed: Inputs for both.
        seconds: About how long to measure; at least three rounds and at most 200 are made.
        until_clear: Stop as soon as rounds in both orders agree, within 10 %, that the second is at
            least a quarter faster, and a tenth of a second was measured.

    Raises:
        QcError: QC607, a session fails on the feed.
    """
    times_a: list[float] = []
    times_b: list[float] = []
    order = [(b, times_b), (a, times_a)]
    warm = None  # the session that ran last; in the first run after it its threads still spin
    started = time.perf_counter()
    while len(times_a) < _LEAST_RUNS or time.perf_counter() < started + seconds:
        measured = time.perf_counter() - started
        if until_clear and measured >= _CLEAR_SECONDS and _is_clear(times_a, times_b):
            break
        if len(times_a) == _MOST_RUNS:
            break
        for session, times in order:
            if session is not warm:
                run(session, feed)
            warm = session
            times.append(_time(session, feed))
        order.reverse()
    ratios = _ratios(times_a, times_b)
    return LatencyComparison(
        statistics.median(times_a) * 1e3,
        statistics.median(times_b) * 1e3,
        statistics.median(ratios),
        len(ratios),
    )


def clear_round(a: Sequence[float], b: Sequence[float]) -> int | None:
    """The median round of runs made anyway, when they say beyond doubt that ``b`` is faster.

    Args:
        a: Seconds of the first session's runs, one for each feed.
        b: Of the second's, on the same feeds.

    Returns:
        Index of the round whose ratio is the median; None when there are less than three rounds,
        one is too short to be timed under the profiler, or one shows less than a quarter.
    """
    ratios = _ratios(a, b)
    if len(ratios) < _LEAST_RUNS or min(a) < _LEAST_PROFILED or min(ratios) < _CLEAR_RATIO:
        return None
    return ratios.index(statistics.median_high(ratios))


def _ratios(times_a: Sequence[float], times_b: Sequence[float]) -> list[float]:
    return [x / y for x, y in zip(times_a, times_b, strict=True)]


def _is_clear(times_a: Sequence[float], times_b: Sequence[float]) -> bool:
    ratios = _ratios(times_a, times_b)
    if len(ratios) < _CLEAR_RUNS:
        return False
    return min(ratios) >= _CLEAR_RATIO and max(ratios) <= _CLEAR_SPREAD * min(ratios)


def _time(session: ort.InferenceSession, feed: Feed) -> float:
    started = time.perf_counter()
    run(session, feed)
    return time.perf_counter() - started

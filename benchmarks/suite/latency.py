"""Latency: every contestant in a process of its own, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompiler.bench import Candidate, compare
from qcompiler.diagnostics import QcError
from suite.jobs import plain

__all__ = ["measure"]


def measure(
    candidates: list[Candidate],
    feeds: Mapping[str, Mapping[str, Any]],
    *,
    rounds: int,
    seconds: float,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Latency by candidate and feed.

    A candidate that does not run is found beforehand, alone, and takes no part; its entry is
    ``{"failed": why}``.

    Args:
        candidates: The first is the baseline.
        feeds: Feed by name of its size.
        rounds: Interleaved rounds.
        seconds: Seconds a candidate and round.
        threads: Threads within an operator.

    Returns:
        Candidate -> feed -> ``median_ms``, ``ratio`` (baseline / candidate; above 1 is faster),
        ``low`` and ``high`` (its 10 % and 90 % quantiles over rounds), ``runs``, ``round_ms``.
    """
    found: dict[str, dict[str, Any]] = {item.name: {} for item in candidates}
    for label, feed in feeds.items():
        able = []
        for item in candidates:
            try:
                compare([item], dict(feed), rounds=1, seconds=0.0, threads=threads)
            except QcError as error:
                found[item.name][label] = {"failed": plain(error.diagnostic.message)}
            else:
                able.append(item)
        if candidates[0] not in able:
            continue
        timed = compare(able, dict(feed), rounds=rounds, seconds=seconds, threads=threads)
        for row in timed:
            entry = row.to_dict()
            found[str(entry.pop("name"))][label] = entry
    return found

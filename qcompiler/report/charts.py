"""The numbers behind the page's charts, as JSON-able tables that ``page.js`` draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qcompiler.plan import Plan, Verdict
from qcompiler.report.model import Report

__all__ = ["chart_data", "finite"]

_MOST_OPS = 14  # bars that can be read; the rest is summed up in one
_SHORTEST = 0.005  # share of the time below which an operator is among the others
_MOST_LAYERS = 25
_VERDICTS = (Verdict.QUANTIZED, Verdict.FUSED, Verdict.CARRIED, Verdict.FLOAT)


def chart_data(report: Report, plan: Plan) -> dict[str, Any]:
    """Data of every chart; a chart whose data are not there is None and is not shown."""
    labels = {item.node: item.module or item.node for item in plan}
    data = {
        "coverage": _coverage(report),
        "latency": _latency(report),
        "gain": None if report.profile else _gain(plan),
        "activations": _activations(report),
        "weights": [{**item, "label": labels.get(item["node"], "")} for item in report.weights],
        "error": _error(report, labels),
        "sensitivity": _sensitivity(report, labels),
        "timeline": _timeline(report),
    }
    checked: dict[str, Any] = finite(data)
    return checked


def finite(data: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(item) for key, item in data.items()}
    if isinstance(data, list | tuple):
        return [finite(item) for item in data]
    return data


def _coverage(report: Report) -> dict[str, Any] | None:
    by_op: Mapping[str, Mapping[str, int]] = report.coverage.get("by_op", {})
    if not by_op:
        return None
    ordered = sorted(by_op.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows = _cut([(op, {**counts}) for op, counts in ordered])
    used = [v.value for v in _VERDICTS if any(counts.get(v.value) for _, counts in rows)]
    return {
        "ops": [op for op, _ in rows],
        "series": {verdict: [counts.get(verdict, 0) for _, counts in rows] for verdict in used},
    }


def _latency(report: Report) -> dict[str, Any] | None:
    before: Mapping[str, float] = report.profile.get("float", {})
    after: Mapping[str, float] = report.profile.get("artifact", {})
    if not before and not after:
        return None
    ops = sorted({*before, *after}, key=lambda op: -max(before.get(op, 0.0), after.get(op, 0.0)))
    pairs = [(op, {"float": before.get(op, 0.0), "artifact": after.get(op, 0.0)}) for op in ops]
    least = _SHORTEST * max(sum(before.values()), sum(after.values()))
    rows = _cut(pairs, sum(max(times.values()) >= least for _, times in pairs))
    return {
        "ops": [op for op, _ in rows],
        "float": [round(times["float"] / 1e3, 4) for _, times in rows],
        "artifact": [round(times["artifact"] / 1e3, 4) for _, times in rows],
    }


def _gain(plan: Plan) -> dict[str, Any] | None:
    gains: dict[str, dict[str, float]] = {}
    for item in plan:
        if item.verdict is Verdict.QUANTIZED and item.gain_us is not None:
            entry = gains.setdefault(item.op, {"gain": 0.0})
            entry["gain"] += item.gain_us
    if not gains:
        return None
    rows = _cut(sorted(gains.items(), key=lambda item: -item[1]["gain"]))
    return {
        "ops": [op for op, _ in rows],
        "ms": [round(row["gain"] / 1e3, 4) for _, row in rows],
    }


def _cut(
    rows: Sequence[tuple[str, Mapping[str, Any]]], most: int = _MOST_OPS
) -> list[tuple[str, Mapping[str, Any]]]:
    """The first rows, and the sum of the others."""
    most = min(most, _MOST_OPS)
    if len(rows) <= most + 1:
        return list(rows)
    rest: dict[str, Any] = {}
    for _, numbers in rows[most:]:
        for key, number in numbers.items():
            rest[key] = rest.get(key, 0) + number
    return [*rows[:most], (f"{len(rows) - most} others", rest)]


def _activations(report: Report) -> list[dict[str, Any]]:
    values: Mapping[str, Mapping[str, Any]] = report.calibration.get("values", {})
    return [
        {
            **item,
            "name": name,
            "label": item.get("label", name),
            "lo": _extreme(item["lo"], min),
            "hi": _extreme(item["hi"], max),
        }
        for name, item in values.items()
    ]


def _extreme(number: Any, which: Any) -> float:
    """The least or greatest of a number or of nested lists of them."""
    if isinstance(number, list | tuple):
        return float(which(_extreme(item, which) for item in number))
    return float(number)


def _error(report: Report, labels: Mapping[str, str]) -> dict[str, Any] | None:
    rows = [item for item in report.layers if item.get("sqnr_db") is not None]
    if not rows:
        return None
    return {
        "nodes": [item["node"] for item in rows],
        "labels": [labels.get(item["node"], item["node"]) for item in rows],
        "sqnr": [item["sqnr_db"] for item in rows],
        "weight": _column(rows, "weight_sqnr_db"),
        "activation": _column(rows, "activation_sqnr_db"),
    }


def _column(rows: Iterable[Mapping[str, Any]], key: str) -> list[Any] | None:
    numbers = [item.get(key) for item in rows]
    return numbers if any(number is not None for number in numbers) else None


def _sensitivity(report: Report, labels: Mapping[str, str]) -> dict[str, Any] | None:
    known = [item for item in report.layers if item.get("sensitivity") is not None]
    known.sort(key=lambda item: -item["sensitivity"])
    if not known:
        return None
    rows = known[:_MOST_LAYERS]
    return {
        "of": len(known),
        "labels": [labels.get(item["node"], item["node"]) for item in rows],
        "nodes": [item["node"] for item in rows],
        "values": [item["sensitivity"] for item in rows],
        "returned": [bool(item.get("returned")) for item in rows],
    }


def _timeline(report: Report) -> list[dict[str, Any]]:
    """Steps one after another: seconds from the start, a step per pass where there are passes."""
    steps: list[dict[str, Any]] = []
    at = 0.0
    passes = report.timings.get("passes", [])
    for phase, seconds in report.timings.get("phases", {}).items():
        inside = [item for item in passes if item["phase"] == phase]
        for item in inside or [{"name": phase, "seconds": seconds}]:
            steps.append(
                {
                    "phase": phase,
                    "name": item["name"],
                    "start": round(at, 6),
                    "seconds": round(item["seconds"], 6),
                    "nodes": item.get("nodes"),
                    "modified": item.get("modified"),
                }
            )
            at += item["seconds"]
    return steps

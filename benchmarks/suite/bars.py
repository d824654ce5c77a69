"""The bars: what must hold, checked against the results that are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Bar", "Checked", "check"]

Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One number and its limit.

    Attributes:
        what: For the table.
        value: Reads the number from the results; None when it was not measured.
        limit: The bar.
        at_most: Whether the number must stay below the limit instead of reaching it.
        unit: Shown behind the numbers.
        needs_amx: Whether the bar is stated for a host with AMX.
    """

    what: str
    value: Callable[[Results], float | None]
    limit: float
    at_most: bool = False
    unit: str = "x"
    needs_amx: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """A bar and what was measured for it."""

    bar: Bar
    value: float | None

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        bar = self.bar
        return (
            "met"
            if (self.value <= bar.limit if bar.at_most else self.value >= bar.limit)
            else "missed"
        )


def check(results: Results) -> list[Checked]:
    """Every bar with its number."""
    return [Checked(bar, bar.value(results)) for bar in _BARS + _never_slower(results)]


def _at(results: Results, *path: str) -> Any:
    found: Any = results
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _speed(model: str, name: str, feed: str) -> Callable[[Results], float | None]:
    return lambda r: _at(r, "models", model, "contestants", name, "latency", feed, "ratio")


def _beside(model: str, name: str, other: str, feed: str) -> Callable[[Results], float | None]:
    """How much faster ``name`` is than ``other``, both timed in the same rounds."""

    def value(results: Results) -> float | None:
        ours, theirs = (_speed(model, who, feed)(results) for who in (name, other))
        return ours / theirs if ours and theirs else None

    return value


def _score(model: str, name: str, measure: str) -> Callable[[Results], float | None]:
    return lambda r: _at(r, "models", model, "contestants", name, "fidelity", measure)


def _lost_points(model: str, name: str, measure: str) -> Callable[[Results], float | None]:
    """How many points below the float model; 0 when above it."""

    def value(results: Results) -> float | None:
        ours = _score(model, name, measure)(results)
        base = _score(model, name, f"reference_{measure}")(results)
        return None if ours is None or base is None else max(0.0, 100 * (base - ours))

    return value


def _compile_share(results: Results) -> float | None:
    rows = _at(results, "experiments", "compile_time") or {}
    ours = _at(rows, "ours, verification included", "seconds")
    theirs = _at(rows, "ORT quant_pre_process + quantize_static", "seconds")
    return ours / theirs if ours and theirs else None


def _memory_growth(results: Results) -> float | None:
    rows = _at(results, "experiments", "memory") or {}
    peaks = [row.get("peak_mb") for _, row in sorted(rows.items(), key=lambda item: int(item[0]))]
    return peaks[-1] / peaks[0] if len(peaks) == 2 and all(peaks) else None


def _covered(*keys: str) -> Callable[[Results], float | None]:
    def value(results: Results) -> float | None:
        rows = _at(results, "experiments", "coverage")
        if not rows or any("failed" in row for row in rows.values()):
            return None
        counts = [row[key] for row in rows.values() for key in keys]
        return float(sum(len(item) if isinstance(item, list) else item for item in counts))

    return value


def _never_slower(results: Results) -> list[Bar]:
    """One bar a model: the slowest of all recipes that nobody forced, at any size."""
    return [
        Bar(f"{model}: slowest of static, dynamic, auto and float at any size",
            _slowest(model), 0.98)
        for model in results.get("models", {})
    ]  # fmt: skip


def _slowest(model: str) -> Callable[[Results], float | None]:
    names = ("static-int8", "static-int8-qdq", "dynamic-int8", "auto", "float")

    def value(results: Results) -> float | None:
        ratios = [
            row["ratio"]
            for name in names
            for row in (
                _at(results, "models", model, "contestants", name, "latency") or {}
            ).values()
            if "ratio" in row
        ]
        return min(ratios) if ratios else None

    return value


_LITE = "efficientnet-lite0"
_BARS = [
    Bar("minilm static-int8, 8x128", _speed("minilm", "static-int8", "8x128"), 3.5, needs_amx=True),
    Bar("minilm static-int8, 1x32", _speed("minilm", "static-int8", "1x32"), 2.5, needs_amx=True),
    Bar("minilm static-int8, 1x128", _speed("minilm", "static-int8", "1x128"), 3.0, needs_amx=True),
    Bar("minilm static-int8 beside ORT quantize_dynamic, 8x128",
        _beside("minilm", "static-int8", "ort-dynamic", "8x128"), 2.0, needs_amx=True),
    Bar("minilm static-int8, mean cosine", _score("minilm", "static-int8", "cosine_mean"), 0.99,
        unit=""),
    Bar("minilm static-int8, R@1 below float",
        _lost_points("minilm", "static-int8", "recall_at_1"), 1.0, at_most=True, unit=" points"),
    Bar("minilm dynamic-int8, 8x128", _speed("minilm", "dynamic-int8", "8x128"), 2.4,
        needs_amx=True),
    Bar("minilm dynamic-int8, mean cosine", _score("minilm", "dynamic-int8", "cosine_mean"), 0.995,
        unit=""),
    Bar(f"{_LITE} static-int8, b1", _speed(_LITE, "static-int8", "b1"), 1.8, needs_amx=True),
    Bar(f"{_LITE} static-int8, b8", _speed(_LITE, "static-int8", "b8"), 2.05, needs_amx=True),
    Bar(f"{_LITE} static-int8 beside ORT quantize_static, b1",
        _beside(_LITE, "static-int8", "ort-static-minmax", "b1"), 1.0),
    Bar(f"{_LITE} static-int8 beside ORT quantize_static, b8",
        _beside(_LITE, "static-int8", "ort-static-minmax", "b8"), 1.0),
    Bar(f"{_LITE} static-int8, agreement", _score(_LITE, "static-int8", "agreement"), 0.94,
        unit=""),
    Bar(f"{_LITE} static-int8, KL", _score(_LITE, "static-int8", "kl"), 0.012, at_most=True,
        unit=""),
    Bar("ppocr-rec static-int8, 8x48x320", _speed("ppocr-rec", "static-int8", "8x48x320"), 1.3),
    Bar("ppocr-rec static-int8, characters below float",
        _lost_points("ppocr-rec", "static-int8", "character_accuracy"), 0.3, at_most=True,
        unit=" points"),
    Bar("ppocr-rec own recipe, characters below float",
        _lost_points("ppocr-rec", "own", "character_accuracy"), 0.1, at_most=True,
        unit=" points"),
    Bar("ppocr-det static-int8, 1x640x640", _speed("ppocr-det", "static-int8", "1x640x640"), 1.3),
    Bar("ppocr-det static-int8, characters below float",
        _lost_points("ppocr-det", "static-int8", "character_accuracy"), 0.3, at_most=True,
        unit=" points"),
    Bar("minilm static compile beside ORT's tool", _compile_share, 0.5, at_most=True),
    Bar("peak memory, percentile, 1,000 beside 50 sentences", _memory_growth, 1.10, at_most=True),
    Bar("nodes without a verdict, all models and recipes", _covered("without_verdict"), 0,
        at_most=True, unit=""),
    Bar("floats without a reason", _covered("unexplained"), 0, at_most=True, unit=""),
    Bar("planned kernels missed without a diagnostic", _covered("missed_silently"), 0,
        at_most=True, unit=""),
    Bar("import qcompiler", lambda r: _at(r, "experiments", "import", "seconds"), 1.0,
        at_most=True, unit=" s"),
    Bar("import qcompiler imports torch", lambda r: _at(r, "experiments", "import", "torch"), 0,
        at_most=True, unit=""),
]  # fmt: skip

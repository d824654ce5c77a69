"""An artifact that is slower than float at another size than the first feed's is found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler import qcompile
from qcompiler.verify import check
from qcompiler_models import tiny


def feed(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, 4), np.float32)}


def test_the_feed_that_looked_slowest_is_suspected() -> None:
    samples = [feed(1), feed(8), feed(32), feed(1)]
    even = [1.0, 1.0, 1.0, 1.0]
    assert check._suspect(even, [0.5, 1.01, 0.9, 3.0], samples, 0.02) is None
    assert check._suspect(even, [0.5, 1.1, 1.3, 3.0], samples, 0.02) is samples[2]
    assert check._suspect(even[:2], [0.5, 1.1], samples, 0.02) is samples[1]
    assert check._suspect(even, [0.5, 0.0, 0.9, 3.0], samples, 0.02) is None


@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_it_is_timed_and_its_verdict_counts(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = tiny.feeds("mlp", 4)
    small, other = feeds[0], feeds[1]
    assert small["x"].shape != other["x"].shape
    timed = []

    def latency(a: Any, b: Any, given: dict[str, np.ndarray], seconds: float, **_: Any) -> Any:
        timed.append(given["x"].shape)
        found = 3.0 if given["x"].shape == small["x"].shape else ratio
        return {"float_ms": 1.0, "artifact_ms": 1 / found, "ratio": found, "runs": 3, "feed": "x"}

    monkeypatch.setattr(check, "_latency", latency)
    monkeypatch.setattr(check, "_seen_latency", lambda *given: {})
    monkeypatch.setattr(check, "_suspect", lambda a, b, samples, tolerated: samples[1])
    recipe = {"base": "dynamic-int8", "force": True}
    artifact = qcompile(tiny.mlp(), "cpu", recipe, feeds)
    assert artifact.report.latency["ratio"] == ratio
    again = [other["x"].shape] if ratio < 1 else []  # looked at once more, at length
    assert timed == [small["x"].shape, other["x"].shape, *again]

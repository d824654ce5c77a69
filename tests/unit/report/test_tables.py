"""The summary stays short however many outputs a model has."""

from __future__ import annotations

from typing import Any

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.report.model import Report
from qcompiler.report.tables import summary_text


def nearness(output: str, cosine: float) -> dict[str, Any]:
    return {"output": output, "cosine": cosine, "sqnr_db": 20.0, "max_abs": 0.1}


def said(cosines: dict[str, float]) -> str:
    fidelity = tuple(nearness(name, cosine) for name, cosine in cosines.items())
    return summary_text(Report({"name": "m"}, "cpu", "float", "ort", {}, fidelity=fidelity))


def test_every_output_of_a_small_model_is_told() -> None:
    text = said({f"y{index}": 0.9 + index / 100 for index in range(6)})
    assert all(f"fidelity y{index} " in text for index in range(6))
    assert "more" not in text


def test_of_many_outputs_the_worst_of_the_rest_is_told() -> None:
    cosines = {"logits": 0.99} | {f"present.{index}": 0.99 - index / 1000 for index in range(20)}
    text = said(cosines)
    assert "fidelity of 15 more" in text
    assert "at worst present.19: cosine 0.97100" in " ".join(text.split())
    assert "present.5 " not in text


def test_a_hint_is_said_once() -> None:
    report = Report({"name": "m"}, "cpu", "r", "ort", diagnostics=tuple(
        Diagnostic(Code.LOW_FIDELITY, name, "far", hint)
        for name, hint in (("a", "more data"), ("b", "more data"), ("c", "fewer bits"))
    ))  # fmt: skip
    said = str(report)
    assert said.count("more data") == 1
    assert said.count("fewer bits") == 1


def test_an_output_of_zeros_is_not_called_exact() -> None:
    item = {"output": "y", "cosine": 0.0, "sqnr_db": None, "max_abs": 0.5}
    said = str(Report({"name": "m"}, "cpu", "r", "ort", fidelity=(item,)))
    assert "exact" not in said
    assert "float gives zeros" in said

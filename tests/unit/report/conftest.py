"""Reports to draw: one full of data, with names that try to break out of the page."""

from __future__ import annotations

import pytest

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.report.model import Report, coverage
from qcompiler.schemes import QSpec

HOSTILE = """</script><script>alert(1)</script>"'><img src=x onerror=alert(2)> & {{ 7 * 7 }}"""


def a_plan() -> Plan:
    u8, s8 = QSpec.parse("u8tz"), QSpec.parse("s8c@1")
    slow = Diagnostic(Code.DOES_NOT_PAY, "add", "float takes 3 us", "probe this machine")
    nothing = Diagnostic(Code.NO_KERNEL, HOSTILE, f"no kernel for {HOSTILE}")
    decisions = [
        NodeDecision(
            "first", "MatMul", Verdict.QUANTIZED, "matmul-static", (u8, s8), (None,),
            origin=("user_a", "user_b", HOSTILE), module="encoder.first", gain_us=120.5,
        ),
        NodeDecision(
            "second", "MatMul", Verdict.QUANTIZED, "matmul-static", (u8, s8), (u8,),
            origin=("second",), gain_us=1300.0,
        ),
        NodeDecision("add", "Add", Verdict.FLOAT, reason=slow, origin=("add",)),
        NodeDecision(HOSTILE, HOSTILE, Verdict.FLOAT, reason=nothing, module=HOSTILE),
        NodeDecision("bias", "Add", Verdict.FUSED, into="first", origin=("bias",)),
    ]  # fmt: skip
    removed = (NodeDecision("gone", "Identity", Verdict.REMOVED, into="no-ops", origin=("gone",)),)
    nodes = {item.node: item for item in decisions}
    return Plan("cpu-vnni", "static-int8", "ort", nodes, {}, removed)


def a_report(plan: Plan) -> Report:
    histogram = {"lo": -1.0, "hi": 3.0, "counts": [1, 20, 300, 40]}
    return Report(
        source={"name": HOSTILE, "kind": "onnx", "nodes": 6},
        target="cpu-vnni",
        recipe="static-int8",
        form="ort",
        coverage=coverage(plan),
        calibration={
            "method": "auto",
            "values": {
                HOSTILE: {
                    "lo": -0.5, "hi": 3.5, "method": "mse", "label": HOSTILE, "seen_lo": -1.0,
                    "seen_hi": 3.0, "clipped": 0.003, "bulk": 0.1, "histogram": histogram,
                },
                "given": {"lo": 0.0, "hi": 1.0, "method": "given"},
            },
        },
        weights=(
            {
                "node": "first", "input": 1, "spec": "s8c@1", "shape": [4, 8], "lo": -1.0,
                "hi": 1.0, "narrowest": 0.5, "bits": 6.5, "histogram": histogram,
            },
        ),
        layers=(
            {"node": "first", "sqnr_db": 31.5, "cosine": 0.999, "sensitivity": 0.25},
            {"node": "second", "sqnr_db": 12.0, "cosine": 0.97, "sensitivity": 3.5},
        ),
        fidelity=(
            {"output": HOSTILE, "cosine": 0.95, "sqnr_db": 10.0, "max_abs": 1.0, "finite": True,
             "feeds": 4},
            {"output": "same", "cosine": 1.0, "sqnr_db": None, "max_abs": 0.0, "finite": True,
             "feeds": 4},
        ),
        kernels={"seen": 1, "planned": 2},
        latency={"float_ms": 9.0, "artifact_ms": 3.0, "ratio": 3.0, "runs": 5, "feed": HOSTILE},
        profile={
            "source": "measured",
            "runs": 3,
            "float": {"MatMul": 8000.0, "Add": 900.0},
            "artifact": {"MatMul": 1500.0, "Add": 900.0, HOSTILE: 600.0},
            "nodes": {"first": 700.0, "second": 800.0, "add": 900.0, HOSTILE: 600.0},
        },
        sizes={"float_bytes": 40_000_000, "artifact_bytes": 10_000_000},
        timings={
            "total": 2.5,
            "phases": {"open": 0.5, "float": 0.3, "verify": 1.7},
            "passes": [
                {"name": "fold", "phase": "float", "seconds": 0.1, "modified": True, "nodes": 6},
                {"name": HOSTILE, "phase": "float", "seconds": 0.2, "modified": False, "nodes": 6},
            ],
        },
        versions={"numpy": "2.0"},
        diagnostics=(
            Diagnostic(Code.LOW_FIDELITY, "y", "cosine 0.9500", "more data"),
            Diagnostic(Code.OPSET_KEPT, HOSTILE, HOSTILE, HOSTILE),
            Diagnostic(Code.FEW_SAMPLES, "calibration", "4 samples, wanted at least 8"),
        ),
    )  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    return a_plan()


@pytest.fixture
def report(plan: Plan) -> Report:
    return a_report(plan)

"""What the contestants' table does not show: compile time, memory, import, coverage."""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from qcompiler import Artifact
from qcompiler.frontends import open_model
from qcompiler.ir.walk import all_nodes
from qcompiler_models import load_model
from suite.contestants import OURS, Maker
from suite.jobs import JobError, run_job, write_feeds
from suite.peers import Peers

__all__ = ["compile_time", "coverage", "import_time", "percentile_memory"]

_OWN = pathlib.Path(sys.executable)
_IMPORT = (
    "import json, sys, time; t = time.perf_counter(); import qcompiler; "
    "bare = time.perf_counter() - t; from qcompiler import Artifact, Recipe, qcompile; "
    "print(json.dumps({'seconds': bare, 'seconds_names': time.perf_counter() - t, "
    "'torch': 'torch' in sys.modules, 'onnxruntime': 'onnxruntime' in sys.modules}))"
)


def compile_time(peers: Peers, folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    """MiniLM, static, 64 sentences: the whole of ours beside the whole of ONNX Runtime's tool.

    Each in a process of its own, taking turns. ``seconds`` is the work without imports,
    ``with_imports`` from the start to the end of the process.
    """
    model = load_model("minilm")
    feeds = write_feeds(model.calibration(64), folder / "feeds" / "minilm-64")
    jobs: dict[str, tuple[pathlib.Path, str, dict[str, Any]]] = {
        "ours, verification included": (_OWN, "compile_ours.py", _spec("static-int8", feeds)),
        "ours, verification off": (
            _OWN,
            "compile_ours.py",
            _spec({"base": "static-int8", "verify": {"enabled": False}}, feeds),
        ),
        "ORT quant_pre_process + quantize_static": (
            peers.python,
            "quantize_ort.py",
            {"method": "minmax", "operators": None, "calibration": str(feeds)},
        ),
        "the same, MatMul and Gemm only": (
            peers.python,
            "quantize_ort.py",
            {"method": "minmax", "operators": ["MatMul", "Gemm"], "calibration": str(feeds)},
        ),
    }
    why = peers.why_not(("onnxruntime", "onnx", "sympy"))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(repeats):
            for row, (python, script, spec) in jobs.items():
                if script == "quantize_ort.py" and why:
                    failed[row] = why
                    continue
                made = pathlib.Path(name) / ("out" if python is _OWN else "out.onnx")
                spec = {**spec, "model": str(model.onnx()), "output": str(made)}
                try:
                    rows[row].append(run_job(python, script, spec))
                except JobError as error:
                    failed[row] = str(error)
    return {
        row: _middle(found) if found else {"failed": failed[row]} for row, found in rows.items()
    }


def _spec(recipe: str | Mapping[str, Any], feeds: pathlib.Path) -> dict[str, Any]:
    return {"recipe": recipe, "form": None, "calibration": str(feeds)}


def _middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(item["seconds"] for item in found),
        "with_imports": statistics.median(item["wall_seconds"] for item in found),
        "peak_mb": max(item["peak_mb"] for item in found),
        "runs": [item["seconds"] for item in found],
        "phases": found[-1].get("phases", {}),
    }


def percentile_memory(folder: pathlib.Path, small: int, large: int) -> dict[str, Any]:
    """Peak memory of a percentile calibration of MiniLM with few and with many sentences."""
    model = load_model("minilm")
    recipe = {
        "base": "static-int8",
        "calibration": {"method": "percentile"},
        "verify": {"enabled": False},
    }
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in (small, large):
            feeds = write_feeds(model.calibration(count), folder / "feeds" / f"minilm-{count}")
            spec = {**_spec(recipe, feeds), "model": str(model.onnx())}
            try:
                done = run_job(_OWN, "compile_ours.py", {**spec, "output": f"{name}/{count}"})
            except JobError as error:
                rows[str(count)] = {"failed": str(error)}
            else:
                rows[str(count)] = {key: done[key] for key in ("seconds", "peak_mb", "imports_mb")}
    return rows


def import_time(repeats: int) -> dict[str, Any]:
    """Seconds of ``import qcompiler`` in a fresh interpreter, and what it drags in.

    The package imports its names when they are first used; ``seconds_names`` is with the three that
    everyone uses.
    """
    found = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    return {
        "seconds": statistics.median(item["seconds"] for item in found),
        "seconds_names": statistics.median(item["seconds_names"] for item in found),
        "torch": any(item["torch"] for item in found),
        "onnxruntime": any(item["onnxruntime"] for item in found),
    }


def coverage(maker: Maker, models: list[str]) -> dict[str, Any]:
    """Of each model and recipe: nodes without a verdict, floats without a reason, kernels missed.

    Nodes are counted on the float model as the front end names them, not on the plan's word.
    """
    rows: dict[str, Any] = {}
    for name in models:
        model = load_model(name)
        nodes = {node.name or "" for node in all_nodes(open_model(model.onnx()).model)}
        for contestant in OURS:
            try:
                made = maker.have(contestant, model)
            except JobError as error:
                rows[f"{name} {contestant.name}"] = {"failed": str(error)}
                continue
            rows[f"{name} {contestant.name}"] = _covered(Artifact.load(made), nodes)
    return rows


def _covered(artifact: Artifact, nodes: set[str]) -> dict[str, Any]:
    told = {name for item in artifact.plan for name in (item.node, *item.origin)}
    told |= {name for item in artifact.plan.removed for name in (item.node, *item.origin)}
    kernels = artifact.report.kernels
    not_seen = [item["node"] for item in kernels.get("kernels", ()) if not item["ok"]]
    said = {d.where for d in artifact.report.diagnostics if d.code.name == "KERNEL_NOT_SEEN"}
    return {
        "nodes": len(nodes),
        "without_verdict": len(nodes - told),
        "unexplained": artifact.report.coverage["unexplained"],
        "verdicts": dict(artifact.report.coverage["user"]),
        "reasons": dict(artifact.report.coverage["reasons"]),
        "planned": kernels.get("planned", 0),
        "seen": kernels.get("seen", 0),
        "missed_silently": sorted(set(not_seen) - said),
        "leftover": len(kernels.get("leftover", ())),
    }

"""Hold the ranking of nodes by sensitivity against the honest ground truth.

The truth: for each planned node, an artifact in which that node alone is quantized, run by its
real kernels on data that calibration never saw. It is computed once and kept as JSON, since it
takes a compile and a pass over the data for every node. The ranking is what ``qcompile`` measures.

    python benchmarks/sensitivity.py --models minilm,efficientnet-lite0
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.calibration.feeds import open_feeds
from qcompiler.calibration.padding import Padding
from qcompiler.frontends import open_model
from qcompiler.pipeline.contract import Phase, State
from qcompiler.pipeline.registry import default_pipeline, pipeline_text
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.sensitivity.ranking import SAMPLES, rank
from qcompiler.targets.registry import load_target
from qcompiler_models import load_model
from qcompiler_models.real import RealModel

_FEEDS = 4  # what the driver hands to the ranking


def main() -> None:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        model = load_model(name)
        planned, state = _planned(model, options.target)
        path = options.output / f"sensitivity-{name}.json"
        mark = _fingerprint(state)
        truth = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if truth.get("fingerprint") != mark:
            truth = {"fingerprint": mark, **_truth(model, planned, state, options.limit)}
            path.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        feeds = list(itertools.islice(state.feeds or (), _FEEDS))
        for samples in sorted({1, SAMPLES, 2 * SAMPLES}):
            started = time.perf_counter()
            found = rank(planned, state, feeds, samples=samples)
            seconds = time.perf_counter() - started
            line = {
                "model": name,
                "nodes": len(found.damage),
                "samples": found.samples,
                "runs": found.runs,
                "seconds": round(seconds, 1),
                "truth_seconds": round(truth["seconds"], 1),
                **{
                    f"spearman_{measure}": round(
                        spearman([found.damage[node] for node in damage], list(damage.values())), 3
                    )
                    for measure, damage in truth["damage"].items()
                },
            }
            print(json.dumps(line), flush=True)


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation; ties get their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(x: list[float]) -> np.ndarray:
    values = np.asarray(x)
    return (values[:, None] > values).sum(1) + 0.5 * (values[:, None] == values).sum(1)


def _fingerprint(state: State) -> str:
    """Of all that the truth hangs on: plan, ranges, rounded weights and what is done with them."""
    assert state.ranges is not None
    assert state.weights is not None
    mark = hashlib.sha256(f"{state.plan}\n{pipeline_text(default_pipeline())}".encode())
    for name, found in state.ranges.items():
        mark.update(f"{name} {found.lo} {found.hi}".encode())
    for key, weight in state.weights.items():
        mark.update(f"{key}".encode() + weight.q.tobytes() + weight.scale.tobytes())
    return mark.hexdigest()


def _planned(model: RealModel, target: str) -> tuple[ir.Model, State]:
    """The model with its weights rounded, and the state that belongs to it."""
    recipe, where = Recipe.of(model.recipe), load_target(target)
    graph = open_model(model.onnx()).model
    feeds = open_feeds(model.calibration(), input_specs(graph))
    state = State(where, recipe, where.form, feeds=feeds, sample=feeds.first)
    passes = [item for item in default_pipeline() if item.phase < Phase.APPLY]
    run_pipeline(passes, graph, state, check=False)
    return graph, state


def _truth(model: RealModel, planned: ir.Model, state: State, limit: int) -> dict[str, Any]:
    """Relative error and 1 - cosine of the outputs by node, on data not used for calibration."""
    assert state.plan is not None
    started = time.perf_counter()
    feeds: list[Mapping[str, Any]] = []
    model.score(lambda feed: feeds.append(feed) or model.float_run(feed), limit=limit)
    wanted = [model.float_run(dict(feed)) for feed in feeds]
    last = [item for item in default_pipeline() if item.phase >= Phase.APPLY]
    nodes = [item.node for item in state.plan if item.kernel]
    movable = [item.node for item in state.plan if item.verdict.value in ("quantized", "carried")]
    padding = Padding.of(planned, None)
    damage: dict[str, dict[str, float]] = {"error": {}, "cosine": {}}
    for node in nodes:
        copy = planned.clone()
        alone = dataclasses.replace(
            state,
            plan=state.plan.keep_float(*(other for other in movable if other != node)),
            diagnostics=[],
            removed={},
        )
        run_pipeline(last, copy, alone, check=False)
        session = open_session(copy, settings=alone.session)
        sums = {name: np.zeros(4) for name, x in wanted[0].items() if x.dtype.kind == "f"}
        for feed, want in zip(feeds, wanted, strict=True):
            got = run(session, feed)
            keep = padding.keep(feed)
            for name, sum_ in sums.items():
                x, y = want[name], got[name]
                if keep is not None:
                    x, y = padding.cut(x, keep), padding.cut(y, keep)
                a, b = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
                sum_ += (a @ a, b @ b, a @ b, (a - b) @ (a - b))
        damage["error"][node] = float(np.mean([s[3] / s[0] for s in sums.values()])) ** 0.5
        damage["cosine"][node] = float(
            np.mean([1.0 - s[2] / (s[0] * s[1]) ** 0.5 for s in sums.values()])
        )
        print(f"{model.name} {node} {damage['error'][node]:.5f}", flush=True)
    return {
        "model": model.name,
        "samples": limit,
        "seconds": time.perf_counter() - started,
        "damage": damage,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", default="minilm,efficientnet-lite0")
    parser.add_argument("--target", default="cpu-vnni", help="default: %(default)s")
    parser.add_argument("--limit", type=int, default=64, help="samples of the truth (64)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

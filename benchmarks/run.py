"""Compare qcompiler with the float model and with peers: ``python benchmarks/run.py``.

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from qcompiler import QcError
from qcompiler.runtime.session import runtime_errors
from qcompiler_models import REAL_MODELS, load_model
from qcompiler_models.real import RealModel
from suite import experiments, fidelity, latency
from suite.contestants import CONTESTANTS, OURS, PEERS, Contestant, Maker, for_model
from suite.jobs import JobError, plain
from suite.machine import describe
from suite.peers import no_peers, open_peers
from suite.results import Results

_PARTS = ("compile", "fidelity", "latency", "memory", "coverage", "import")
_QUICK_LIMIT = 64


def main() -> None:
    options = _options()
    peers = open_peers() if options.peers else no_peers()
    settings = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
    }
    results = Results(options.output, describe(options.threads, peers.versions), settings)
    maker = Maker(options.output, peers)
    chosen = [CONTESTANTS[name] for name in ("float-ort", *options.ours, *options.peers)]
    for name in options.models:
        model = load_model(name)
        contestants = for_model(model, chosen)
        if "compile" in options.only:
            _compile(model, contestants, maker, results)
            results.save()
        if "fidelity" in options.only:
            _fidelity(model, contestants, maker, results, options)
            results.save()
        if "latency" in options.only:
            _latency(model, contestants, maker, results, options)
            results.save()
    repeats = 1 if options.quick else 3
    if "compile" in options.only and "minilm" in options.models:
        _say("compile time, minilm")
        results.put_experiment(
            "compile_time", experiments.compile_time(peers, options.output, repeats)
        )
    if "memory" in options.only and "minilm" in options.models:
        _say("memory of percentile calibration, minilm")
        counts = (50, 200) if options.quick else (50, 1000)
        results.put_experiment("memory", experiments.percentile_memory(options.output, *counts))
    if "import" in options.only:
        results.put_experiment("import", experiments.import_time(2 * repeats + 1))
    if "coverage" in options.only:
        _say("coverage")
        results.put_experiment("coverage", experiments.coverage(maker, options.models))
    results.save()
    print((options.output / "results.md").read_text(encoding="utf-8"))


def _compile(
    model: RealModel, contestants: list[Contestant], maker: Maker, results: Results
) -> None:
    for contestant in contestants:
        _say(f"{model.name}: compile {contestant.name}")
        try:
            results.put(model, contestant.name, "compile", maker.make(contestant, model))
        except JobError as error:
            results.put(model, contestant.name, "compile", {"failed": str(error)})


def _fidelity(
    model: RealModel, contestants: list[Contestant], maker: Maker, results: Results, options: Any
) -> None:
    limit = _QUICK_LIMIT if options.quick else None
    expected: tuple[type[Exception], ...] = (JobError, QcError, *runtime_errors())
    for contestant in contestants:
        _say(f"{model.name}: score {contestant.name}")
        scores: dict[str, Any]
        try:
            candidate = maker.candidate(contestant, model)
            scores = fidelity.score(model, candidate, threads=options.threads, limit=limit)
        except expected as error:
            scores = {"failed": plain(str(error))}
        results.put(model, contestant.name, "fidelity", scores)


def _latency(
    model: RealModel, contestants: list[Contestant], maker: Maker, results: Results, options: Any
) -> None:
    candidates = []
    for contestant in contestants:
        try:
            candidates.append(maker.candidate(contestant, model))
        except JobError as error:
            results.put(model, contestant.name, "latency", {"failed": str(error)})
    _say(f"{model.name}: time {len(candidates)} contestants")
    found = latency.measure(
        candidates,
        model.bench_feeds(),
        rounds=options.rounds,
        seconds=options.seconds,
        threads=options.threads,
    )
    for name, entry in found.items():
        results.put(model, name, "latency", entry)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    peers, ours = [item.name for item in PEERS], [item.name for item in OURS]
    parser.add_argument("--models", default=",".join(REAL_MODELS), help="default: %(default)s")
    parser.add_argument(
        "--peers", default=",".join(peers), help="'none', or of %(default)s (default: all)"
    )
    parser.add_argument("--ours", default=",".join(ours), help="default: %(default)s")
    parser.add_argument("--only", default=",".join(_PARTS), help="parts, default: %(default)s")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"))
    parser.add_argument("--quick", action="store_true", help="few rounds, part of the scores")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (9; quick 3)")
    parser.add_argument("--seconds", type=float, help="seconds a round and contestant (0.3)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    options.models = _chosen(parser, "--models", options.models, list(REAL_MODELS))
    options.peers = (
        [] if options.peers == "none" else _chosen(parser, "--peers", options.peers, peers)
    )
    options.ours = [] if options.ours == "none" else _chosen(parser, "--ours", options.ours, ours)
    options.only = _chosen(parser, "--only", options.only, list(_PARTS))
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (0.1 if options.quick else 0.3)
    options.output = options.output.resolve()
    return options


def _chosen(parser: argparse.ArgumentParser, option: str, text: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"{option}: {name!r} is not one of {', '.join(known)}")
    return names


if __name__ == "__main__":
    main()

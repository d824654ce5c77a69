"""Compare weight-only compilation of SmolLM2 with peers: ``python benchmarks/language.py``.

Perplexity on two corpora, size, seconds and peak memory of the compile, each in a process of its
own. What is calibrated is calibrated on windows of *Emma*. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler import Artifact
from qcompiler_models import load_model, perplexity, text
from qcompiler_models.real import Run, run_onnx
from qcompiler_models.smollm2 import SmolLM2
from suite.jobs import JobError, run_job, write_feeds
from suite.machine import describe
from suite.peers import open_peers
from suite.torch_peers import TORCH_PEERS, run_torch_peer

_SECONDS = 7200
_WINDOWS, _LENGTH = 8, 512
_VERSES = 400  # some 30 tokens each
_NEED_DATA = ("gptq", "awq", "teq", "autoround")
_ORT = {"ort-rtn": "rtn", "ort-hqq": "hqq", "ort-k-quant": "k_quant"}


def main() -> None:
    options = _options()
    model = load_model("smollm2")
    assert isinstance(model, SmolLM2)
    corpora = {
        "persuasion": model.tokens("persuasion"),
        "verses": model.encode(" ".join(first for first, _ in text.verse_pairs(_VERSES))),
    }
    rows: dict[str, Any] = {"float": {**_scores(model, model.float_run, corpora), "bits": 32}}
    out: pathlib.Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    data = write_feeds(model.calibration(options.samples), out / "feeds" / f"{options.samples}")
    peers = open_peers() if options.peers else None
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (name, lambda name=name: _ours(name, model, data, out, corpora)) for name in options.ours
    ]
    if peers is not None:
        jobs += [
            (name, lambda name=name: _ort(name, model, peers.python, out, corpora))
            for name in options.peers
            if name.split(":")[0] in _ORT
        ]
    jobs += [
        (name, lambda name=name: _torch(name, model, data, out, corpora))
        for name in options.peers
        if name.split(":")[0] in TORCH_PEERS
    ]
    for name, job in jobs:
        print(f"-- {name}", flush=True)
        try:
            rows[name] = job()
        except JobError as error:
            rows[name] = {"failed": str(error)}
        _save(out, rows, describe(2, peers.versions if peers else {}), vars(options))
    print((out / "language.md").read_text(encoding="utf-8"))


def _ours(
    name: str, model: SmolLM2, data: pathlib.Path, out: pathlib.Path, corpora: Mapping[str, Any]
) -> dict[str, Any]:
    """``algorithm:bits:group:sym|asym``, block layers only, as the peers do it."""
    algorithm, bits, group, kind = name.split(":")
    recipe = {
        "base": f"w4-{algorithm}",
        "weights": {
            "bits": int(bits),
            "group_size": int(group),
            "symmetric": kind == "sym",
            "zero_point": "float" if kind == "float" else "int",
        },
        "embeddings": False,
        "rules": [{"match": "lm_head", "scheme": "float"}],
        "verify": {"enabled": False},
    }
    made = out / "artifacts" / name.replace(":", "-")
    done = run_job(pathlib.Path(sys.executable), "compile_ours.py", {
        "model": str(model.folder()), "output": str(made), "recipe": recipe, "form": None,
        "calibration": str(data) if algorithm in _NEED_DATA else None,
    }, _SECONDS)  # fmt: skip
    return {**_made(done, made), **_scores(model, Artifact.load(made).run, corpora)}


def _ort(
    name: str, model: SmolLM2, python: pathlib.Path, out: pathlib.Path, corpora: Mapping[str, Any]
) -> dict[str, Any]:
    """``tool:bits:group:sym|asym`` by ONNX Runtime's MatMulNBitsQuantizer."""
    tool, bits, group, kind = name.split(":")
    made = out / "peers" / f"{name.replace(':', '-')}.onnx"
    made.parent.mkdir(parents=True, exist_ok=True)
    done = run_job(python, "quantize_ort_nbits.py", {
        "model": str(model.onnx()), "output": str(made), "algorithm": _ORT[tool],
        "bits": int(bits), "group_size": int(group), "symmetric": kind == "sym",
    }, _SECONDS)  # fmt: skip
    return {**_made(done, made), **_scores(model, run_onnx(made), corpora)}


def _torch(
    name: str, model: SmolLM2, data: pathlib.Path, out: pathlib.Path, corpora: Mapping[str, Any]
) -> dict[str, Any]:
    """``tool:bits:group:sym|asym|float`` by a tool that works on torch models."""
    done, made = run_torch_peer(name, model.folder(), data, out / "peers", _SECONDS)
    return {**_made(done, made), **done, **_scores(model, Artifact.load(made).run, corpora)}


def _made(done: Mapping[str, Any], made: pathlib.Path) -> dict[str, Any]:
    files = sorted(made.glob("model.onnx*")) if made.is_dir() else [made]
    return {
        "seconds": done["seconds"],
        "peak_mb": done["peak_mb"],
        "mb": sum(path.stat().st_size for path in files) / 1e6,
    }


def _scores(model: SmolLM2, run: Run, corpora: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, tokens in corpora.items():
        rows = perplexity.windows(tokens, _WINDOWS, _LENGTH)
        losses = [perplexity.score(run, model.feed(row[None])).losses for row in rows]
        found[name] = float(np.exp(np.mean(losses)))
    return found


def _save(
    out: pathlib.Path, rows: Mapping[str, Any], machine: Mapping[str, Any], options: Any
) -> None:
    told = {"machine": machine, "options": {k: str(v) for k, v in options.items()}, "rows": rows}
    (out / "language.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    head = ("who:bits:group:kind", "*Persuasion*", "verses", "MB", "seconds", "peak MB")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, row in rows.items():
        cells = [
            "failed: " + row["failed"] if "failed" in row else _cell(row, "persuasion"),
            *(_cell(row, key) for key in ("verses", "mb", "seconds", "peak_mb")),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (out / "language.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.2f}" if key in row else "-"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ours",
        type=_names,
        default=[
            f"{algorithm}:4:64:{kind}"
            for algorithm, kinds in {
                "rtn": ("sym", "asym"),
                "k-quant": ("asym",),
                "hqq": ("asym", "float"),
                "gptq": ("sym", "asym"),
                "awq": ("asym",),
            }.items()
            for kind in kinds
        ],
        help="algorithm:bits:group:sym|asym|float, with commas between",
    )
    parser.add_argument(
        "--peers",
        type=_names,
        default=[
            "ort-rtn:4:64:sym",
            "ort-rtn:4:64:asym",
            "ort-hqq:4:64:asym",
            "ort-k-quant:4:64:asym",
            "hqq:4:64:float",
            "gptqmodel:4:64:sym",
        ],
        help=f"one of {', '.join([*_ORT, *TORCH_PEERS])}, as above",
    )
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"))
    return parser.parse_args()


def _names(text: str) -> Sequence[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()

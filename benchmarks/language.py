"""Compare weight-only compilation of SmolLM2 with peers: ``python benchmarks/language.py``.

Perplexity on two corpora, size, seconds and peak memory of the compile, each in a process of its
own. What is calibrated is calibrated on windows of *Emma*. What ONNX Runtime GenAI reads is timed,
too: tokens per second of a prompt and after it, in rounds. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import statistics
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
_SCORES = ("verses", "persuasion, divergence", "verses, divergence")
_LENGTH = 512
_VERSES = 400  # some 30 tokens each
_NEED_DATA = ("gptq", "awq", "awq+gptq", "teq", "autoround")
_ORT = {"ort-rtn": "rtn", "ort-hqq": "hqq", "ort-k-quant": "k_quant"}
_PROMPTS, _NEW_TOKENS, _THREADS = (64, 512), 64, 2


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What all contestants have in common.

    Attributes:
        model: SmolLM2.
        data: Folder of calibration windows.
        out: Folder for all that is made.
        corpora: Tokens by name, to score on.
        learning: ``iters`` and ``batch_size`` of what learns.
        windows: Of each corpus, 512 tokens each, to score on.
    """

    model: SmolLM2
    data: pathlib.Path
    out: pathlib.Path
    corpora: Mapping[str, Any]
    learning: Mapping[str, int]
    windows: int

    def scores(self, run: Run) -> dict[str, float]:
        """Perplexity by corpus, and divergence from the float model."""
        found = {}
        for name, tokens in self.corpora.items():
            rows = perplexity.windows(tokens, min(self.windows, len(tokens) // _LENGTH), _LENGTH)
            feeds = [self.model.feed(row[None]) for row in rows]
            losses = [perplexity.score(run, feed).losses for feed in feeds]
            found[name] = float(np.exp(np.mean(losses)))
            apart = [perplexity.divergence(run, self.model.float_run, feed) for feed in feeds]
            found[f"{name}, divergence"] = float(np.mean(apart))
        return found


def main() -> None:
    options = _options()
    model = load_model("smollm2")
    assert isinstance(model, SmolLM2)
    corpora = {
        "persuasion": model.tokens("persuasion"),
        "verses": model.encode(" ".join(first for first, _ in text.verse_pairs(_VERSES))),
    }
    out: pathlib.Path = options.output
    out.mkdir(parents=True, exist_ok=True)
    windows = perplexity.windows(model.tokens("emma"), options.samples, options.length)
    data = out / "feeds" / f"{options.samples}x{options.length}"
    data = write_feeds([model.feed(row[None]) for row in windows], data)
    learning = {"iters": options.iters, "batch_size": options.batch}
    setting = _Setting(model, data, out, corpora, learning, options.windows)
    rows: dict[str, Any] = {"float": {**setting.scores(model.float_run), "bits": 32}}
    peers = open_peers() if options.peers else None
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (name, lambda name=name: _ours(name, setting)) for name in options.ours
    ]
    if peers is not None:
        jobs += [
            (name, lambda name=name: _ort(name, setting, peers.python))
            for name in options.peers
            if name.split(":")[0] in _ORT
        ]
    jobs += [
        (name, lambda name=name: _torch(name, setting))
        for name in options.peers
        if name.split(":")[0] in TORCH_PEERS
    ]
    jobs += [(name, lambda name=name: _builder(name, setting)) for name in options.builder]
    for name, job in jobs:
        print(f"-- {name}", flush=True)
        try:
            rows[name] = job()
        except JobError as error:
            rows[name] = {"failed": str(error)}
        _save(out, rows, describe(2, peers.versions if peers else {}), vars(options))
    if options.rounds:
        _time(rows, model, options.rounds)
        _save(out, rows, describe(2, peers.versions if peers else {}), vars(options))
    print((out / "language.md").read_text(encoding="utf-8"))


def _ours(name: str, setting: _Setting) -> dict[str, Any]:
    """``algorithm:bits:group:sym|asym|float``, block layers only, as the peers do it.

    ``:head8`` behind it: embedding and head in one table of 8 bits; ``:head4``: the embedding in 8,
    the head beside it like the layers. ``:prefill`` behind that: int8 products for prompts, timed
    on a folder that gives the logits of the last token only. ``:mix3456``: each layer in 3 to 6
    bits, all together in the size of equal bits; the digits are the choices. ``:distill64``: scales
    learn from the float model in so many steps, of as many samples as ``--batch`` says.
    """
    algorithm, bits, group, kind, *more = name.split(":")
    mixes = [word for word in more if re.fullmatch("mix[1-8]+", word)]
    distilled = [word for word in more if re.fullmatch("distill[0-9]+", word)]
    if unknown := set(more) - {"head4", "head8", "prefill", *mixes, *distilled}:
        raise SystemExit(f"{name}: unknown {', '.join(sorted(unknown))}")
    rule = {"match": "lm_head", "bits": 8, "algorithm": "rtn", "zero_point": "int"}
    if "head4" in more:
        rule["match"] = "model.embed_tokens"
    elif "head8" not in more:
        rule = {"match": "lm_head", "scheme": "float"}
    recipe = {
        "base": f"w4-{algorithm.removesuffix('+gptq')}",
        "awq": {"rounding": "gptq" if algorithm == "awq+gptq" else "nearest"},
        "autoround": setting.learning,
        "teq": setting.learning,
        "weights": {
            "bits": int(bits),
            "group_size": int(group),
            "symmetric": kind == "sym",
            "zero_point": "float" if kind == "float" else "int",
        },
        "embeddings": "bits" in rule,
        "rules": [rule],
        "prefill": "int8" if "prefill" in more else None,
        "verify": {"enabled": False},
    }
    if distilled:
        steps = int(distilled[0].removeprefix("distill"))
        recipe["distill"] = {"steps": steps, "batch_size": setting.learning["batch_size"]}
    if mixes:
        zero_point = 0 if kind == "sym" else int(bits)
        recipe["bits_budget"] = int(bits) + (32 + zero_point) / int(group)
        recipe["bits_choices"] = [int(digit) for digit in mixes[0].removeprefix("mix")]
    made = setting.out / "artifacts" / name.replace(":", "-")
    job = {
        "model": str(setting.model.folder()),
        "form": None,
        "calibration": str(setting.data)
        if algorithm in _NEED_DATA or "prefill" in more or mixes or distilled
        else None,
    }
    timed = made.with_name(f"{made.name}-last") if "prefill" in more else made
    if timed is not made:
        last = {**job, "recipe": {**recipe, "last_logits": True}, "output": str(timed)}
        run_job(pathlib.Path(sys.executable), "compile_ours.py", last, _SECONDS)
    job = {**job, "recipe": recipe, "output": str(made)}
    done = run_job(pathlib.Path(sys.executable), "compile_ours.py", job, _SECONDS)
    scores = setting.scores(Artifact.load(made).run)
    return {**_made(done, timed), **scores, "folder": str(timed)}


def _builder(name: str, setting: _Setting) -> dict[str, Any]:
    """``genai-precision`` or ``genai-precision-algorithm`` by ONNX Runtime GenAI's builder."""
    _, precision, *algorithm = name.split("-")
    made = setting.out / "peers" / name
    done = run_job(pathlib.Path(sys.executable), "build_genai.py", {
        "model": str(setting.model.folder()), "output": str(made), "precision": precision,
        "algorithm": algorithm[0] if algorithm else None,
    }, _SECONDS)  # fmt: skip
    scores = setting.scores(run_onnx(made / "model.onnx"))
    return {**_made(done, made), **scores, "folder": str(made)}


def _time(rows: Mapping[str, Any], model: SmolLM2, rounds: int) -> None:
    """Add tokens per second to rows with a folder: medians of rounds, a process for each."""
    folders = {name: row["folder"] for name, row in rows.items() if "folder" in row}
    tokens = model.tokens("persuasion")
    job = {
        "threads": _THREADS,
        "prompts": {str(length): tokens[:length].tolist() for length in _PROMPTS},
        "new_tokens": _NEW_TOKENS,
    }
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in folders}
    for turn in range(rounds):
        print(f"-- round {turn + 1} of {rounds}", flush=True)
        for name, folder in folders.items():
            done = run_job(pathlib.Path(sys.executable), "generate.py", {**job, "folder": folder})
            found[name].append(done["rates"])
    for name, rates in found.items():
        for length in map(str, _PROMPTS):
            for what in ("prefill", "decode"):
                each = [rate[length][what] for rate in rates]
                rows[name][f"{what}_{length}"] = statistics.median(each)
                rows[name][f"{what}_{length}_rounds"] = each


def _ort(name: str, setting: _Setting, python: pathlib.Path) -> dict[str, Any]:
    """``tool:bits:group:sym|asym`` by ONNX Runtime's MatMulNBitsQuantizer."""
    tool, bits, group, kind = name.split(":")
    made = setting.out / "peers" / f"{name.replace(':', '-')}.onnx"
    made.parent.mkdir(parents=True, exist_ok=True)
    done = run_job(python, "quantize_ort_nbits.py", {
        "model": str(setting.model.onnx()), "output": str(made), "algorithm": _ORT[tool],
        "bits": int(bits), "group_size": int(group), "symmetric": kind == "sym",
    }, _SECONDS)  # fmt: skip
    return {**_made(done, made), **setting.scores(run_onnx(made))}


def _torch(name: str, setting: _Setting) -> dict[str, Any]:
    """``tool:bits:group:sym|asym|float`` by a tool that works on torch models."""
    folder, peers = setting.model.folder(), setting.out / "peers"
    done, made = run_torch_peer(name, folder, setting.data, peers, _SECONDS, setting.learning)
    return {**_made(done, made), **done, **setting.scores(Artifact.load(made).run)}


def _made(done: Mapping[str, Any], made: pathlib.Path) -> dict[str, Any]:
    files = sorted(made.glob("model.onnx*")) if made.is_dir() else [made]
    return {
        "seconds": done["seconds"],
        "cpu_seconds": done["cpu_seconds"],
        "peak_mb": done["peak_mb"],
        "mb": sum(path.stat().st_size for path in files) / 1e6,
    }


def _save(
    out: pathlib.Path, rows: Mapping[str, Any], machine: Mapping[str, Any], options: Any
) -> None:
    told = {"machine": machine, "options": {k: str(v) for k, v in options.items()}, "rows": rows}
    (out / "language.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    rates = [f"{what}_{length}" for length in _PROMPTS for what in ("prefill", "decode")]
    head = (
        "who:bits:group:kind",
        "*Persuasion*",
        "verses",
        "divergence",
        "of verses",
        "MB",
        "seconds",
        "processor s",
        "peak MB",
    )
    head += tuple(f"{rate.replace('_', ' ')}, tokens/s" for rate in rates)
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, row in rows.items():
        cells = [
            "failed: " + row["failed"] if "failed" in row else _cell(row, "persuasion"),
            *(
                _cell(row, key)
                for key in (*_SCORES, "mb", "seconds", "cpu_seconds", "peak_mb", *rates)
            ),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (out / "language.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return "-"
    return f"{row[key]:.2f}" if row[key] >= 1 else f"{row[key]:.4f}"


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
        ]
        + ["rtn:4:64:asym:head8", "gptq:4:64:asym:head8", "awq+gptq:4:64:asym:head8:prefill"],
        help="algorithm:bits:group:sym|asym|float[:head4|:head8][:prefill][:mixDIGITS][:distillSTEPS],...",
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
    parser.add_argument(
        "--builder",
        type=_names,
        default=["genai-fp32", "genai-int4", "genai-int4-k_quant_mixed"],
        help="genai-precision[-algo_config] of ONNX Runtime GenAI's builder",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of timing generation; 0: none")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens to score on")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--iters", type=int, default=200, help="steps of what learns, by block")
    parser.add_argument("--batch", type=int, default=8, help="windows of one step")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"))
    return parser.parse_args()


def _names(text: str) -> Sequence[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()

"""Compare folders of Whisper tiny.en with GenAI's builder: ``python benchmarks/speech.py``.

Likelihood of the true texts in plain ONNX Runtime and word error rate in ONNX Runtime GenAI on 42
clips that nothing was calibrated on, size, seconds of the compile, and time until the first token
and for each after it, in rounds. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from qcompiler_models import speech, whisper
from qcompiler_models.real import Run
from qcompiler_models.whisper_cached import without_cache
from suite.jobs import JobError, run_job, write_feeds
from suite.machine import describe

_SECONDS, _THREADS, _NEW_TOKENS, _TIMED = 1800, 2, 60, 1
_HEAD8 = {"match": "proj_out", "bits": 8, "algorithm": "rtn", "zero_point": "int"}


def _mixed(algorithm: str, encoder: str) -> dict[str, Any]:
    """Layers of 4 bits, head and table of 8, an encoder of its own."""
    weights = {"symmetric": False}
    return {
        "base": f"w4-{algorithm}", "weights": weights, "rules": [_HEAD8], "encoder": encoder,
    }  # fmt: skip


_OURS: Mapping[str, Any] = {
    "float": "float",
    "weight-int8": "weight-int8",
    "dynamic-int8": "dynamic-int8",
    "w4-rtn": "w4-rtn",
    "w4-rtn:head8:dynamic": _mixed("rtn", "dynamic-int8"),
    "w4-gptq:head8:dynamic": _mixed("gptq", "dynamic-int8"),
}
_BUILDERS = ("genai-fp32", "genai-int4")


def main() -> None:
    options = _options()
    out: pathlib.Path = options.output
    data = write_feeds(whisper.spoken_feeds(options.samples), out / "feeds" / "speech")
    clips = [_save(clip, out / "clips") for clip in speech.scored_clips()]
    rows: dict[str, Any] = {}
    for name in (*options.ours, *options.builder):
        print(f"-- {name}", flush=True)
        try:
            folder, made = _build(name, data, out)
            rows[name] = {**made, **_scores(folder, clips), "folder": str(folder)}
        except JobError as error:
            rows[name] = {"failed": str(error)}
        _write(out, rows)
    _time(rows, clips[_TIMED], options.rounds)
    _write(out, rows)
    print(_table(rows))


def _build(name: str, data: pathlib.Path, out: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    folder = out / ("artifacts" if name in _OURS else "peers") / f"whisper-{name.replace(':', '-')}"
    job: dict[str, Any] = {"model": str(whisper.folder()), "output": str(folder)}
    if name in _OURS:
        needs = name.startswith("w4-gptq")
        job |= {"recipe": _OURS[name], "form": None, "calibration": str(data) if needs else None}
        done = run_job(pathlib.Path(sys.executable), "compile_ours.py", job, _SECONDS)
    else:
        job |= {"precision": name.removeprefix("genai-"), "algorithm": None}
        done = run_job(pathlib.Path(sys.executable), "build_genai.py", job, _SECONDS)
    files = [path for path in folder.rglob("*") if ".onnx" in path.name]
    size = sum(path.stat().st_size for path in files) / 1e6
    return folder, {"mb": size, "seconds": done["seconds"]}


def _scores(folder: pathlib.Path, clips: Sequence[pathlib.Path]) -> dict[str, float]:
    model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
    encoder, decoder = (_session(folder, model[part]) for part in ("encoder", "decoder"))
    shapes = {item.name: tuple(item.shape) for item in decoder.get_inputs()}
    heard = whisper.listen(*without_cache(_run(encoder), _run(decoder), shapes))
    done = run_job(
        pathlib.Path(sys.executable), "transcribe.py", _job(folder, clips[_TIMED], clips), _SECONDS
    )
    truths = [clip.text for clip in speech.scored_clips()]
    return {
        "nll": heard["nll"],
        "token_accuracy": heard["token_accuracy"],
        "wer": speech.word_error_rate(truths, done["texts"]),
    }


def _session(folder: pathlib.Path, said: Mapping[str, Any]) -> ort.InferenceSession:
    """A session of plain ONNX Runtime with the options that GenAI would take."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = _THREADS
    for name, value in said["session_options"].items():
        if name == "graph_optimization_level":
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, value)
        elif isinstance(value, str) and name != "log_id":
            options.add_session_config_entry(name, value)
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(folder / said["filename"], options, providers=providers)


def _run(session: ort.InferenceSession) -> Run:
    names = [item.name for item in session.get_outputs()]
    narrow = {item.name for item in session.get_inputs() if item.type == "tensor(int32)"}

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: x.astype(np.int32) if name in narrow else x for name, x in feed.items()}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def _job(
    folder: pathlib.Path | str, timed: pathlib.Path, clips: Sequence[pathlib.Path] = ()
) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "threads": _THREADS,
        "prompt": whisper.PROMPT_TEXT,
        "clips": [str(clip) for clip in clips],
        "timed": str(timed),
        "new_tokens": _NEW_TOKENS,
    }


def _time(rows: Mapping[str, Any], clip: pathlib.Path, rounds: int) -> None:
    """Add milliseconds to rows with a folder: medians of rounds, a process for each."""
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in rows if "mb" in rows[name]}
    for turn in range(rounds):
        print(f"-- round {turn + 1} of {rounds}", flush=True)
        for name, times in found.items():
            job = _job(rows[name]["folder"], clip)
            times.append(run_job(pathlib.Path(sys.executable), "transcribe.py", job))
    for name, times in found.items():
        for key in ("heard_ms", "token_ms") if times else ():
            rows[name][key] = statistics.median(item[key] for item in times)


def _save(clip: speech.Clip, folder: pathlib.Path) -> pathlib.Path:
    path = folder / f"{clip.name.replace('/', '-')}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.clip(clip.samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def _write(out: pathlib.Path, rows: Mapping[str, Any]) -> None:
    told = {"machine": describe(_THREADS, {}), "rows": rows}
    (out / "speech.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (out / "speech.md").write_text(_table(rows), encoding="utf-8")


def _table(rows: Mapping[str, Any]) -> str:
    keys = {
        "nll": "NLL", "token_accuracy": "tokens right", "wer": "WER in GenAI", "mb": "MB",
        "seconds": "seconds", "heard_ms": "ms to the first token", "token_ms": "ms a token",
    }  # fmt: skip
    lines = [f"| | {' | '.join(keys.values())} |", "|" + " --- |" * (len(keys) + 1)]
    for name, row in rows.items():
        cells = [f"{row[key]:.4g}" if key in row else "-" for key in keys]
        lines.append(f"| {name} {row.get('failed', '')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ", ".join(_OURS)
    parser.add_argument("--ours", type=_names, default=list(_OURS), help=f"some of {names}")
    parser.add_argument("--builder", type=_names, default=list(_BUILDERS), help="genai-precision")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0: none")
    parser.add_argument("--samples", type=int, default=64, help="calibration clips at most")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/out"))
    return parser.parse_args()


def _names(text: str) -> Sequence[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()

"""Fidelity: the model's own score of each contestant, against the float model."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qcompiler import Artifact
from qcompiler.bench import Candidate
from qcompiler_models.real import RealModel, run_onnx

__all__ = ["score"]


def score(
    model: RealModel, candidate: Candidate, *, threads: int, limit: int | None
) -> dict[str, float]:
    """The model's measures for one contestant.

    Args:
        model: A real model of ``qcompiler_models``.
        candidate: ONNX file, artifact folder, or a model with a worker of its own.
        threads: Threads within an operator.
        limit: At most this many samples; None takes all.
    """
    if not candidate.command:
        made = candidate.model
        if made.is_dir():
            session = Artifact.load(made).session(threads=threads)
            names = [output.name for output in session.get_outputs()]
            return _scored(
                model, lambda feed: dict(zip(names, session.run(names, feed), strict=True)), limit
            )
        return _scored(model, run_onnx(made, threads), limit)
    with _remote(candidate, threads) as run:
        return _scored(model, run, limit)


def _scored(model: RealModel, run: Any, limit: int | None) -> dict[str, float]:
    return model.score(run, limit=limit)


@contextlib.contextmanager
def _remote(candidate: Candidate, threads: int) -> Iterator[Any]:
    """A callable that feeds a worker process through files."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        spec, sent, back = folder / "spec.json", folder / "in.npz", folder / "out.npz"
        content = {"model": str(candidate.model), "feed": None, "threads": threads}
        spec.write_text(json.dumps({**content, **candidate.options}), encoding="utf-8")
        errors = (folder / "errors").open("w+", encoding="utf-8")
        process = subprocess.Popen(
            [*candidate.command, str(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip

        def said() -> str:
            lines = (folder / "errors").read_text(encoding="utf-8").strip().splitlines()
            return lines[-1] if lines else f"exit status {process.wait()}"

        def run(feed: Mapping[str, Any]) -> Mapping[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            arrays: dict[str, Any] = {key: np.asarray(x) for key, x in feed.items()}
            np.savez(sent, **arrays)
            process.stdin.write(json.dumps({"run": str(sent), "to": str(back)}) + "\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise RuntimeError(said())
            with np.load(back, allow_pickle=False) as outputs:
                return {key: outputs[key] for key in outputs.files}

        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(said())
            yield run
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, errors):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

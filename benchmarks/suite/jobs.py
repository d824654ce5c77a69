"""Run a worker script in a process of its own and read what it measured."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler_models.assets import cache_root

__all__ = ["WORKERS", "JobError", "plain", "run_job", "write_feeds"]

WORKERS = pathlib.Path(__file__).parents[1] / "workers"


class JobError(RuntimeError):
    """A worker ended badly; the message is its last words, without the machine's paths."""


def run_job(
    python: pathlib.Path, script: str, spec: Mapping[str, Any], seconds: float = 900
) -> dict[str, Any]:
    """What the worker wrote, and ``wall_seconds`` from start to end of its process.

    Args:
        python: Interpreter of the environment to run in.
        script: Name of a file in ``workers``.
        spec: The job; ``result`` is added.
        seconds: After this the worker is ended.

    Raises:
        JobError: If it fails, hangs, or dies.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = pathlib.Path(folder) / "spec.json"
        result = pathlib.Path(folder) / "result.json"
        job.write_text(json.dumps({**spec, "result": str(result)}), encoding="utf-8")
        started = time.perf_counter()
        try:
            done = subprocess.run(
                [str(python), str(WORKERS / script), str(job)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise JobError(f"not done after {seconds:.0f} s") from error
        wall = time.perf_counter() - started
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise JobError(plain(lines[-1] if lines else f"exit status {done.returncode}"))
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return {**measured, "wall_seconds": wall}


def plain(message: str, limit: int = 240) -> str:
    """A message on one line, short, without paths of this machine."""
    text = " ".join(message.split())
    places = (
        tempfile.gettempdir(),
        cache_root(),
        pathlib.Path.cwd(),
        sys.prefix,
        pathlib.Path.home(),
    )
    for place in sorted(map(str, places), key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, "...")
    return text if len(text) <= limit else text[:limit] + " ..."


def write_feeds(feeds: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> pathlib.Path:
    """One ``.npz`` file a feed, in order; the folder is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.npz"):
        old.unlink()
    for index, feed in enumerate(feeds):
        arrays: dict[str, Any] = {name: np.asarray(x) for name, x in feed.items()}
        np.savez(folder / f"{index:05}.npz", **arrays)
    return folder

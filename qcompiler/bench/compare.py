"""Time several models against the first one, a process each, in interleaved rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler.diagnostics import Code, QcError
from qcompiler.pipeline.contract import Feed

__all__ = ["Candidate", "Comparison", "compare"]


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One contestant.

    Attributes:
        name: For the table.
        model: ONNX file or artifact folder.
        command: Command of another worker with the protocol of :mod:`qcompiler.bench.worker`; the
            path of the spec file is appended. Empty uses our own.
        options: More keys of the spec, for that worker.
    """

    name: str
    model: pathlib.Path
    command: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Latency of one candidate beside the first.

    Attributes:
        name: The candidate.
        median_ms: Median latency of a run, milliseconds.
        ratio: Median over rounds of first / candidate; > 1 is faster than the first.
        low: 10 % quantile of that ratio over rounds.
        high: 90 % quantile.
        runs: Timed runs.
        round_ms: Median of each round, milliseconds.
    """

    name: str
    median_ms: float
    ratio: float
    low: float
    high: float
    runs: int
    round_ms: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return dataclasses.asdict(self)


def compare(
    candidates: Sequence[Candidate],
    feed: Feed,
    *,
    rounds: int = 9,
    seconds: float = 0.3,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Comparison, ...]:
    """Time all candidates on one feed.

    In each round every candidate runs for ``seconds`` while the others wait, so a drift of the
    machine hits all of them alike.

    Args:
        candidates: The first is the baseline.
        feed: Input name -> array.
        rounds: Rounds; the ratio's spread is over them.
        seconds: Seconds per candidate and round.
        threads: Intra-op threads; None is the runtime's default.
        progress: Called with (rounds done, rounds).

    Raises:
        QcError: QC606, a candidate does not load or its process died; its last words are told.
    """
    times: list[list[list[float]]] = [[] for _ in candidates]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        np.savez(folder / "feed.npz", **{name: _storable(array) for name, array in feed.items()})
        workers = [
            stack.enter_context(
                _worker(item, folder / f"{index}.json", folder / "feed.npz", threads)
            )
            for index, item in enumerate(candidates)
        ]
        for done in range(rounds):
            for index, (item, worker) in enumerate(zip(candidates, workers, strict=True)):
                times[index].append(_ask(worker, item, seconds))
            if progress is not None:
                progress(done + 1, rounds)
    medians = [[statistics.median(round_) for round_ in rounds_] for rounds_ in times]
    return tuple(
        _summary(item.name, times[index], medians[0], medians[index])
        for index, item in enumerate(candidates)
    )


def _storable(array: Any) -> Any:
    """Text with a fixed width: objects would be pickled, and no pickle is read."""
    array = np.asarray(array)
    return array.astype(str) if array.dtype == object else array


def _summary(
    name: str, times: list[list[float]], first: list[float], own: list[float]
) -> Comparison:
    ratios = np.array(first) / np.array(own)
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    runs = [value for round_ in times for value in round_]
    return Comparison(
        name,
        statistics.median(runs),
        float(middle),
        float(low),
        float(high),
        len(runs),
        tuple(own),
    )


@contextlib.contextmanager
def _worker(
    item: Candidate, spec: pathlib.Path, feed: pathlib.Path, threads: int | None
) -> Iterator[subprocess.Popen[str]]:
    content = {"model": str(item.model), "feed": str(feed), "threads": threads, **item.options}
    spec.write_text(json.dumps(content), encoding="utf-8")
    command = item.command or (sys.executable, "-m", "qcompiler.bench.worker")
    with (spec.with_suffix(".err")).open("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, str(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            _read(process, item, spec)
            yield process
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def _ask(process: subprocess.Popen[str], item: Candidate, seconds: float) -> list[float]:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
        process.stdin.flush()
    except BrokenPipeError as error:
        raise QcError(Code.DOES_NOT_LOAD, item.name, "its process died while timed") from error
    return [float(value) for value in _read(process, item, None)["ms"]]


def _read(process: subprocess.Popen[str], item: Candidate, spec: pathlib.Path | None) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line:
        return json.loads(line)
    said = spec.with_suffix(".err").read_text(encoding="utf-8") if spec is not None else ""
    words = _last_words(said) or f"exit status {process.wait()}"
    raise QcError(
        Code.DOES_NOT_LOAD,
        f"{item.name} ({item.model})",
        f"cannot be timed: {words}",
        "models that are compared take the same inputs",
    )


def _last_words(said: str) -> str:
    """The message, of however many lines, behind the frames of a traceback."""
    lines = said.strip().splitlines()
    frames = [index for index, line in enumerate(lines) if line.startswith("  ")]
    return " ".join(line.strip() for line in lines[frames[-1] + 1 if frames else -1 :])

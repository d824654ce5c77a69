"""``qcompile bench``: prepare the feed and the contestants."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from google.protobuf.message import DecodeError

from qcompiler.bench.compare import Candidate, Comparison, compare
from qcompiler.calibration.encoder_decoder import part_feeds
from qcompiler.calibration.feeds import open_feeds
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.opened import ENCODER
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.trial_feeds import runnable_feed

__all__ = ["bench_models"]


def bench_models(
    artifact: str | os.PathLike[str],
    against: str | os.PathLike[str],
    data: Any = None,
    *,
    rounds: int = 9,
    seconds: float = 0.3,
    threads: int | None = None,
) -> tuple[Comparison, ...]:
    """Time ``artifact`` against ``against``; each an ONNX file or an artifact folder.

    Of two encoder-decoders both parts are timed: rows of the encoders, then of the decoders.

    Args:
        artifact: The contestant.
        against: The baseline of the ratio.
        data: Feeds as for calibration, the first is used; None generates one.
        rounds: Interleaved rounds.
        seconds: Seconds per model and round.
        threads: Intra-op threads; None is the runtime's default.

    Raises:
        QcError: QC701 a model is missing, QC702 the baseline is no ONNX file, QC20x the data do not
            fit, QC606 a model does not load.
    """
    paths = [pathlib.Path(against), pathlib.Path(artifact)]
    for path in paths:
        if not path.exists():
            raise QcError(Code.NO_FILE, str(path), "there is no such file or folder")
        if path.is_dir() and not (path / "model.onnx").is_file():
            raise QcError(
                Code.NOT_ARTIFACT,
                str(path),
                "the folder has no model.onnx",
                "give an artifact or an ONNX file; recipe 'float' makes one of a language model",
            )
    timed = functools.partial(_time, rounds=rounds, seconds=seconds, threads=threads)
    inner = [path / ENCODER for path in paths]
    if not all((path / "model.onnx").is_file() for path in inner):
        return timed(paths, [path.name for path in paths], data)
    parts = {"encoder": inner, "decoder": paths}
    encoder, decoder = (_read(_file_of(given[0])) for given in parts.values())
    sources = (None, None) if data is None else part_feeds(data, encoder, decoder, 1)
    rows: list[Comparison] = []
    for (part, given), source in zip(parts.items(), sources, strict=True):
        rows += timed(given, [f"{path.name}/{part}" for path in paths], source)
    return tuple(rows)


def _time(
    paths: Sequence[pathlib.Path],
    names: Sequence[str],
    data: Any,
    *,
    rounds: int,
    seconds: float,
    threads: int | None,
) -> tuple[Comparison, ...]:
    model = _read(_file_of(paths[0]))
    feed = runnable_feed(model) if data is None else open_feeds(data, input_specs(model)).first
    return compare(
        [Candidate(name, path) for name, path in zip(names, paths, strict=True)],
        feed,
        rounds=rounds,
        seconds=seconds,
        threads=threads,
    )


def _file_of(path: pathlib.Path) -> pathlib.Path:
    return path / "model.onnx" if path.is_dir() else path


def _read(file: pathlib.Path) -> ir.Model:
    try:
        return ir.load(file)
    except (OSError, DecodeError, ValueError, ir.serde.SerdeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QcError(
            Code.NOT_ONNX,
            str(file),
            f"does not read as ONNX: {reason}",
            "give an artifact or an ONNX file",
        ) from error

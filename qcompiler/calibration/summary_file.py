"""Statistics as a ``.npz`` file: arrays without pickle, and a JSON header that says of what."""

from __future__ import annotations

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.calibrators import MinMax, MovingAverage
from qcompiler.calibration.histogram import Histogram
from qcompiler.calibration.moments import PatchMoment
from qcompiler.calibration.rows import Channels, Reservoir
from qcompiler.calibration.runner import Statistics
from qcompiler.calibration.summary import TensorSummary
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.text import model_text

__all__ = ["model_digest", "read", "write"]

_FORMAT = 2
_HEADER = "header"
Arrays = Mapping[str, npt.NDArray[Any]]


def model_digest(model: ir.Model) -> str:
    """SHA-256 of the graph and of all its weights."""
    digest = hashlib.sha256(model_text(model, digest=False).encode())
    for name in sorted(model.graph.initializers):
        tensor = model.graph.initializers[name].const_value
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.numpy()).view(np.uint8).data)
    return digest.hexdigest()


def write(statistics: Statistics, path: pathlib.Path, model: ir.Model) -> None:
    """Save; see :meth:`Statistics.save`.

    Raises:
        QcError: QC706, the file cannot be written.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    values = []
    for index, (name, summary) in enumerate(statistics.summaries.items()):
        values.append({"name": name, **_scalars(summary)})
        for key, array in _arrays(summary).items():
            arrays[f"{index}.{key}"] = array
    header = {
        "format": _FORMAT,
        "model": model_digest(model),
        "feeds": statistics.feeds,
        "samples": statistics.samples,
        "values": values,
    }
    arrays[_HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    try:
        with path.open("wb") as file:  # an open file keeps numpy from adding a suffix
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise QcError(
            Code.NOT_WRITABLE, str(path), f"cannot be written: {error.strerror or error}"
        ) from error


def read(path: pathlib.Path, model: ir.Model, wanted: Iterable[str]) -> Statistics:
    """Load; see :meth:`Statistics.load`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays[_HEADER].tobytes())
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, wanted {_FORMAT}")
        statistics = Statistics(
            summaries={
                item["name"]: _summary(item, _of(arrays, index))
                for index, item in enumerate(header["values"])
            },
            feeds=int(header["feeds"]),
            samples=int(header["samples"]),
            model_digest=str(header["model"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise QcError(
            Code.CALIBRATION_SOURCE, str(path), f"not a calibration summary: {error}"
        ) from error
    found = model_digest(model)
    if found != statistics.model_digest:
        raise QcError(
            Code.SUMMARY_MISMATCH,
            str(path),
            f"the summary is of model {statistics.model_digest[:12]}, this is {found[:12]}",
            "calibrate this model anew",
        )
    missing = [name for name in wanted if name not in statistics.summaries]
    if missing:
        raise QcError(
            Code.SUMMARY_MISMATCH,
            str(path),
            f"{len(missing)} planned values are not in the summary, as {missing[0]!r}",
            "calibrate with this target and recipe",
        )
    statistics.attach(model)
    return statistics


def _scalars(summary: TensorSummary) -> dict[str, Any]:
    return {
        "lo": float(summary.extremes.lo),
        "hi": float(summary.extremes.hi),
        "momentum": summary.average.momentum,
        "batches": summary.average.batches,
        "infinite": summary.histogram.infinite,
        "axis": summary.channel_axis,
        "rows": 0 if summary.channels is None else summary.channels.rows,
        "patches": _patch_scalars(summary.patches),
        "capacity": 0 if summary.reservoir is None else summary.reservoir.capacity,
    }


def _patch_scalars(patches: PatchMoment | None) -> dict[str, Any] | None:
    if patches is None:
        return None
    return {
        "count": patches.count,
        "groups": patches.groups,
        "kernel": patches.kernel,
        "dilation": patches.dilation,
    }


def _arrays(summary: TensorSummary) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {
        "average": np.stack((summary.average.first, summary.average.mean)),
        "counts": summary.histogram.counts,
    }
    if summary.channels is not None:
        found["total"] = summary.channels.total
        kept = summary.channels.extremes
        found["extremes"] = np.array((kept.lo, kept.hi, kept.next_lo, kept.next_hi))
    if summary.reservoir is not None:
        found["keys"] = summary.reservoir.keys
        found["sample"] = summary.reservoir.rows
    if summary.patches is not None:
        found["patches"] = summary.patches.total
    return found


def _of(arrays: Arrays, index: int) -> Arrays:
    prefix = f"{index}."
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def _summary(item: Mapping[str, Any], arrays: Arrays) -> TensorSummary:
    average = MovingAverage(float(item["momentum"]))
    average.batches = int(item["batches"])
    average.first, average.mean = arrays["average"][0], arrays["average"][1]
    summary = TensorSummary(
        MinMax(float(item["lo"]), float(item["hi"])),
        average,
        Histogram(arrays["counts"], int(item["infinite"])),
        item["axis"],
    )
    if "total" in arrays:
        summary.channels = Channels(len(arrays["total"]))
        summary.channels.total = arrays["total"]
        kept = summary.channels.extremes
        kept.lo, kept.hi, kept.next_lo, kept.next_hi = arrays["extremes"]
        summary.channels.rows = int(item["rows"])
    if "keys" in arrays:
        # a later part of the stream must not draw the keys of the first part again
        summary.reservoir = Reservoir(int(item["capacity"]), seed=summary.histogram.total)
        summary.reservoir.keys, summary.reservoir.rows = arrays["keys"], arrays["sample"]
    if "patches" in arrays and item["patches"] is not None:
        kept, total = item["patches"], arrays["patches"]
        kernel, dilation = tuple(kept["kernel"]), tuple(kept["dilation"])
        summary.patches = PatchMoment(1, 1, kernel, dilation, seed=summary.histogram.total)
        summary.patches.groups, summary.patches.total = kept["groups"], total
        summary.patches.count = int(kept["count"])
    return summary

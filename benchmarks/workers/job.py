"""What the worker scripts share. They run in other environments: only numpy may be expected."""

from __future__ import annotations

import json
import pathlib
import resource
import sys
import time
from typing import Any

import numpy as np

__all__ = ["finish", "load_feeds", "peak_mb", "raised_for_channels", "read_spec"]

_OLDEST_OPSET = 13  # DequantizeLinear has an axis from here on
_RAISED_OPSET = 17

STARTED = time.perf_counter()


def read_spec() -> dict[str, Any]:
    """The job: the JSON file that the only argument names."""
    spec: dict[str, Any] = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    return spec


def load_feeds(folder: str) -> list[dict[str, np.ndarray]]:
    """The feeds of a folder of ``.npz`` files, by file name."""
    feeds = []
    for path in sorted(pathlib.Path(folder).glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            feeds.append({name: arrays[name] for name in arrays.files})
    return feeds


def raised_for_channels(path: str, folder: str) -> str:
    """A file whose opset can hold a scale per channel: ``path``, or a raised copy in ``folder``.

    Users of the peers must do the same: on an older opset their models do not load.
    """
    import onnx
    from onnx import version_converter

    bare = onnx.load(path, load_external_data=False)
    opset = next(item.version for item in bare.opset_import if item.domain in ("", "ai.onnx"))
    if opset >= _OLDEST_OPSET:
        return path
    raised = str(pathlib.Path(folder) / "raised.onnx")
    onnx.save(version_converter.convert_version(onnx.load(path), _RAISED_OPSET), raised)
    return raised


def peak_mb() -> float:
    """Peak resident memory of this process, MB (10^6 bytes).

    Linux tells it in ``VmHWM``. ``ru_maxrss`` is for other systems: on Linux it would start from
    what the parent held when it forked.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def finish(spec: dict[str, Any], **measured: Any) -> None:
    """Write what was measured to the file the spec names, with memory and time of this process.

    ``cpu_seconds`` are those of all its threads from its start, imports included.
    """
    result = {**measured, "peak_mb": peak_mb(), "cpu_seconds": time.process_time()}
    pathlib.Path(spec["result"]).write_text(json.dumps(result), encoding="utf-8")

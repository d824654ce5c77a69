"""One model in OpenVINO's runtime, served on demand: ``openvino_runtime.py SPEC.json``.

Speaks the protocol of ``qcompiler.bench.worker`` (``{"seconds": 0.3}`` is answered by
``{"ms": [...]}``) and one request more: ``{"run": IN.npz, "to": OUT.npz}`` computes the outputs.

Spec: ``model`` (``.onnx`` or ``.xml``), ``feed`` (``.npz``) or null, ``threads`` or null,
``precision`` (``f32``, ``bf16``) or null for what the runtime chooses.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from job import read_spec

_WARM_UP = 3


def main() -> None:
    spec = read_spec()
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if spec.get("threads"):
        options["INFERENCE_NUM_THREADS"] = spec["threads"]
    if spec.get("precision"):
        options["INFERENCE_PRECISION_HINT"] = spec["precision"]
    model = core.compile_model(core.read_model(spec["model"]), "CPU", options)
    request = model.create_infer_request()

    def call(feed: dict[str, np.ndarray]) -> Any:
        return request.infer(feed, share_inputs=True, share_outputs=True)

    feed = _read(spec["feed"]) if spec.get("feed") else None
    if feed is not None:
        for _ in range(_WARM_UP):
            call(feed)
    _answer({"ready": True})
    for line in sys.stdin:
        wanted = json.loads(line)
        if "run" in wanted:
            outputs = call(_read(wanted["run"]))
            np.savez(wanted["to"], **{port.any_name: array for port, array in outputs.items()})
            _answer({"done": True})
        else:
            assert feed is not None, "a timing request needs a spec with a feed"
            _answer({"ms": _time(functools.partial(call, feed), float(wanted["seconds"]))})


def _time(call: Callable[[], Any], budget: float) -> list[float]:
    call()  # wake threads and caches, as the project's own worker does
    spent: list[float] = []
    started = time.perf_counter()
    while not spent or (time.perf_counter() - started < budget and len(spent) < 1000):
        begin = time.perf_counter()
        call()
        spent.append((time.perf_counter() - begin) * 1e3)
    return spent


def _read(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _answer(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

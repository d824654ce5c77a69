"""One model in one process, timed on demand: ``python -m qcompiler.bench.worker SPEC.json``.

Reads JSON lines ``{"seconds": 0.3}`` and answers ``{"ms": [...]}``, one latency per run; ends at
end of input. Any runtime can take part by a worker with the same protocol.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["main", "serve"]

_WARM_UP = 3


def serve(call: Callable[[], Any]) -> None:
    """Answer timing requests for ``call`` until standard input ends."""
    for _ in range(_WARM_UP):
        call()
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        budget = float(json.loads(line)["seconds"])
        call()  # wake the thread pool and the caches: the other process has just used them
        spent: list[float] = []
        started = time.perf_counter()
        while not spent or (time.perf_counter() - started < budget and len(spent) < 1000):
            begin = time.perf_counter()
            call()
            spent.append((time.perf_counter() - begin) * 1e3)
        sys.stdout.write(json.dumps({"ms": spent}) + "\n")
        sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Open the model that the spec names and serve it."""
    spec = json.loads(pathlib.Path((arguments or sys.argv[1:])[0]).read_text(encoding="utf-8"))
    with np.load(spec["feed"], allow_pickle=False) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    session = _session(spec)
    from qcompiler.runtime.session import fitting_feed

    own = fitting_feed(session, feed)
    serve(lambda: session.run(None, own))


def _session(spec: dict[str, Any]) -> Any:
    path = pathlib.Path(spec["model"])
    if path.is_dir():
        from qcompiler.artifact import Artifact

        return Artifact.load(path, check=False).session(threads=spec["threads"])
    from qcompiler.runtime.session import open_session

    return open_session(path, threads=spec["threads"])


if __name__ == "__main__":
    main()

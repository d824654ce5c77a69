"""How long each operator takes in a session, from the runtime's own profiler.

The profiler of ONNX Runtime can only be asked for when a session is opened, and only ends once. The
sessions that verification opens anyway are therefore opened with it; their first runs are profiled,
and it is off when latency is measured.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from qcompiler.diagnostics import Code
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import run

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["NodeTimes", "Profiler", "read_trace"]

_RUNS = 4  # the first warms up and does not count
_KERNEL = "_kernel_time"
_BODIES = frozenset({"If", "Loop", "Scan"})  # their time is that of the nodes inside


@dataclasses.dataclass(frozen=True, slots=True)
class NodeTimes:
    """Microseconds of one run, each node's fastest of ``runs``.

    A few runs of a node of some microseconds are all there is, and a busy machine only ever makes
    them longer: the fastest is nearest to what the kernel takes.

    Attributes:
        ops: By operator type (of the runtime's graph, without domain).
        nodes: By node name (of the runtime's graph).
        runs: Runs that count.
    """

    ops: Mapping[str, float]
    nodes: Mapping[str, float]
    runs: int


class Profiler:
    """Runs a session that was opened with ``profile``, and stops its profiler after some runs.

    Attributes:
        session: The session.
        seconds: Of each run.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.seconds: list[float] = []
        self._last: Feed | None = None
        self._times: NodeTimes | None = None
        self._done = False

    def run(
        self, feed: Feed, *, code: Code = Code.FLOAT_MODEL_FAILS
    ) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name, as :func:`qcompiler.runtime.session.run`."""
        started = time.perf_counter()
        outputs = run(self.session, feed, code=code)
        self.seconds.append(time.perf_counter() - started)
        self._last = feed
        if len(self.seconds) == _RUNS:
            self._end()
        return outputs

    def times(self) -> NodeTimes | None:
        """Times of the runs so far; None when the runtime's trace cannot be read.

        Ends the profiler if it still runs; after a single run it runs once more.
        """
        if not self._done and len(self.seconds) == 1 and self._last is not None:
            run(self.session, self._last)
        self._end()
        return self._times

    def _end(self) -> None:
        if self._done:
            return
        self._done = True
        path = pathlib.Path(self.session.end_profiling())
        if path.is_file():
            self._times = read_trace(path)
            path.unlink()


def read_trace(path: pathlib.Path) -> NodeTimes | None:
    """Fastest times of all runs but the first in a trace that the runtime wrote.

    None when it holds no second run, or is no JSON: the runtime writes node names as they are,
    quotation marks included.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        return None
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    if len(starts) < 2:
        return None
    runs = len(starts) - 1
    spent: dict[tuple[str, str], list[float]] = {}  # a node of a loop's body runs several times
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith(_KERNEL) or event["ts"] < starts[1]:
            continue
        key = name[: -len(_KERNEL)], event["args"]["op_name"]
        if key[1] in _BODIES:
            continue
        run_index = bisect.bisect_right(starts, event["ts"]) - 2
        spent.setdefault(key, [0.0] * runs)[run_index] += event["dur"]
    ops: dict[str, float] = {}
    nodes: dict[str, float] = {}
    for (node, op), times in spent.items():
        ops[op] = ops.get(op, 0.0) + min(times)
        nodes[node] = nodes.get(node, 0.0) + min(times)
    return NodeTimes(ops, nodes, runs)

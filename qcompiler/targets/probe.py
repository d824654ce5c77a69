"""Check a target's claims on the runtime installed here, and measure what its kernels cost.

For each row a small model is built in each of its forms, run, held against numpy, and looked for in
the runtime's optimized graph; then it is timed against float at several sizes, and its cost is
fitted anew. Traps are sprung to see whether they are still there.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.runtime.session import runtime_errors
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.fit import scale_cost
from qcompiler.targets.host import host
from qcompiler.targets.probe_cache import probe_cache
from qcompiler.targets.probe_float8 import FLOAT8_ENTRIES
from qcompiler.targets.probe_layers import ConvShape, Probed, model_of, probed_layer
from qcompiler.targets.probe_speed import Measured, Timing, measure
from qcompiler.targets.probe_timing import compute, operators
from qcompiler.targets.probe_traps import TRAP_PROBES
from qcompiler.targets.schema import CacheType, Form, Kernel, Target

__all__ = ["ProbeReport", "RowProbe", "Timing", "TrapProbe", "probe"]

Progress = Callable[[str], None]

_RUNTIMES = ("onnxruntime", "onnx")  # the second: standard Q/DQ, which ONNX Runtime runs too
_SEED = 7
_CHECK_LINEAR = (5, 64, 48)
_CHECK_CONV = ConvShape(2, 16, 24, 3, 9)
_CHECK_POOL = (2, 6, 8, 8)
_CHECK_FLAT = (6, 50)
_CHECK_GATHER = (7, 20, 32)


@dataclasses.dataclass(frozen=True, slots=True)
class RowProbe:
    """What a row does here.

    Attributes:
        id: The row's id; with the form behind it where it is not the target's own.
        kernel: The row's id.
        form: The form that was run.
        ok: The numbers hold and the kernel was seen.
        why: What was seen, or what is wrong.
        error: Largest error, as a share of the largest expected value; None when it did not run.
        speedup: Median over the timed layers against float; None when not timed.
        timings: The layers.
    """

    id: str
    kernel: str
    form: Form
    ok: bool
    why: str
    error: float | None = None
    speedup: float | None = None
    timings: tuple[Timing, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TrapProbe:
    """Whether a trap is still there.

    Attributes:
        id: The trap's id.
        armed: True: still there; False: no longer; None: not probed.
        what: What was seen.
    """

    id: str
    armed: bool | None
    what: str


@dataclasses.dataclass(frozen=True)
class ProbeReport:
    """What a target's rows do on this machine.

    Attributes:
        target: The target as it was given.
        refitted: The target with the costs measured here, where they were measured.
        runtime: The runtime's version.
        cpu: The machine.
        threads: Threads of the timings.
        rows: A result per row and form.
        traps: A result per trap.
        noise: Median of a run's time over its shortest, over all that was timed; far above 1 when
            the machine was busy, and the costs are then no good. 1 when nothing was timed.
        complete: Every layer was timed within the time allowed.
        seconds: What it took.
    """

    target: Target
    refitted: Target
    runtime: str
    cpu: str
    threads: int
    rows: tuple[RowProbe, ...]
    traps: tuple[TrapProbe, ...]
    noise: float
    complete: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "target": self.target.name,
            "runtime": self.runtime,
            "cpu": self.cpu,
            "threads": self.threads,
            "noise": round(self.noise, 3),
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "rows": [{**dataclasses.asdict(row), "form": row.form.value} for row in self.rows],
            "traps": [dataclasses.asdict(trap) for trap in self.traps],
            "costs": {key: dataclasses.asdict(cost) for key, cost in self.refitted.costs.items()},
        }


def probe(
    target: Target,
    rows: Sequence[str] | None = None,
    *,
    refit: bool = True,
    quick: bool = False,
    seconds: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ProbeReport:
    """Probe the rows of a target on the ONNX Runtime installed here.

    Args:
        target: Whose rows.
        rows: Ids of the kernels to probe; None means all, and the traps too.
        refit: Time them and fit their costs anew; needs a machine that has the target's ISA.
        quick: Fewer layers.
        seconds: Stop timing after this long (default 60, quick 15); what is left keeps its cost.
        threads: Threads to time with; None means the target's, or fewer where there are fewer.
        progress: Told what is being done.

    Raises:
        QcError: QC411, the target's runtime cannot be probed here, or it has no such row.
    """
    start = time.perf_counter()
    if target.runtime not in _RUNTIMES:
        raise QcError(
            Code.USAGE,
            target.name,
            f"the runtime {target.runtime!r} cannot be probed from here",
            "probe a target of ONNX Runtime; the rows of this one stand on documentation",
        )
    tell = progress or _silent
    chosen = _choose(target, rows)
    cpu = host()
    threads = threads or max(1, min(target.threads, os.cpu_count() or 1))
    checked = [_check(row, form, target, tell) for row in chosen for form in row.forms]
    if rows is None:
        checked += [_check_cache(row, target, tell) for row in target.caches if _is_here(row)]
    traps = tuple(_spring(target, tell)) if rows is None else ()
    measured = Measured()
    complete = True
    timed = tuple(row for row in chosen if not row.reference)
    if refit and target.costs and cpu.has(target.isa):
        end = start + (seconds if seconds is not None else (15.0 if quick else 60.0))
        complete = measure(
            target, timed, measured, quick=quick, end=end, threads=threads, tell=tell
        )
    # What was not timed is as much slower or faster here as float is: else a table would mix two
    # machines, and conversions would look cheap or dear beside the kernels they serve.
    share = measured.speed(target.costs) if rows is None else 1.0
    known = {key: scale_cost(cost, share) for key, cost in target.costs.items()}
    costs = {**(known if rows is None else target.costs), **measured.costs(target.costs)}
    refitted = dataclasses.replace(target, costs=costs, threads=threads) if measured else target
    return ProbeReport(
        target=target,
        refitted=refitted,
        runtime=_runtime(),
        cpu=cpu.model,
        threads=threads,
        rows=tuple(_with_timings(item, measured.timings) for item in checked),
        traps=traps,
        noise=statistics.median(measured.noises) if measured.noises else 1.0,
        complete=complete,
        seconds=time.perf_counter() - start,
    )


def _silent(step: str) -> None:
    return None


def _choose(target: Target, rows: Sequence[str] | None) -> tuple[Kernel, ...]:
    if rows is None:
        return target.kernels
    ids = [row.id for row in target.kernels]
    for name in rows:
        if name not in ids:
            raise QcError(Code.USAGE, target.name, f"no kernel {name!r}", nearest(name, ids))
    return tuple(row for row in target.kernels if row.id in rows)


def settings_of(row: Kernel, form: Form, target: Target) -> SessionSettings:
    """Session options under which a row is checked and timed."""
    entries = {key: str(value) for key, value in target.options.items()}
    if form is Form.ORT and row.op != "Conv":
        return SessionSettings("disable", entries)
    if form is Form.QDQ and row.scheme.value == "dynamic":
        key = "optimization.disable_specified_optimizers"
        entries[key] = ";".join(filter(None, [entries.get(key), "MatMulAddFusion"]))
    if any(spec is not None and spec.is_float8 for spec in row.inputs):
        entries.update(FLOAT8_ENTRIES)
    return SessionSettings("all", entries)


def _check(row: Kernel, form: Form, target: Target, tell: Progress) -> RowProbe:
    name = row.id if form is target.form else f"{row.id} ({form.value})"
    tell(f"checking {name}")
    try:
        layer = probed_layer(row, target, _check_size(row), _SEED)
    except KeyError:
        return RowProbe(name, row.id, form, False, f"no probe is written for {row.op}")
    if form.value not in layer.builds:
        return RowProbe(name, row.id, form, False, f"no probe is written for form {form.value}")
    model = model_of([layer.builds[form.value]], layer.feeds[form.value])
    settings = settings_of(row, form, target)
    try:
        output = compute(model, layer.feeds[form.value], settings)[0]
        seen = operators(model, settings)
    except QcError as error:
        return RowProbe(name, row.id, form, False, error.diagnostic.message)
    except runtime_errors() as error:
        return RowProbe(name, row.id, form, False, f"fails when it runs: {error}"[:300])
    error_share = _error(output, layer, form)
    wanted = row.seen_as(form)
    # by bare name: the layout pass moves QLinearConv into com.microsoft
    present = not wanted or bool({_bare(op) for op in wanted} & {_bare(op) for op in seen})
    right = error_share <= layer.tolerance
    shown = ", ".join(dict.fromkeys(seen))
    if not right:
        why = f"wrong: off by {error_share:.2%} of the largest value, {layer.tolerance:.2%} allowed"
    elif not present:
        why = f"runs as {shown}, wanted {' or '.join(wanted)}"
    else:
        why = f"runs as {shown}" if wanted else f"numbers hold; runs as {shown}"
    return RowProbe(name, row.id, form, right and present, why, error_share)


def _is_here(row: CacheType) -> bool:
    here, since = (re.findall(r"\d+", text) for text in (_runtime(), row.since))
    return [int(part) for part in here[:2]] >= [int(part) for part in since[:2]]


def _runtime() -> str:
    return importlib.metadata.version("onnxruntime")


def _check_cache(row: CacheType, target: Target, tell: Progress) -> RowProbe:
    name = f"kv_cache {row.id}"
    tell(f"checking {name}")
    try:
        ok, why, error = probe_cache(row)
    except QcError as refused:
        return RowProbe(name, row.id, target.form, False, refused.diagnostic.message)
    except runtime_errors() as failed:
        return RowProbe(name, row.id, target.form, False, f"fails when it runs: {failed}"[:300])
    return RowProbe(name, row.id, target.form, ok, why, error)


def _bare(op: str) -> str:
    return op.rpartition(":")[2]


def _check_size(row: Kernel) -> tuple[int, ...] | ConvShape:
    if row.op == "Conv":
        return _CHECK_CONV
    if row.op == "MatMul":
        return (5, 128, 48) if row.scheme.value == "weight" else _CHECK_LINEAR
    if row.op == "Gather":
        return _CHECK_GATHER
    return _CHECK_POOL if "Pool" in row.op or row.op == "Concat" else _CHECK_FLAT


def _error(output: Any, layer: Probed, form: Form) -> float:
    """Largest error as a share of the largest expected value; integers are dequantized first."""
    if output.dtype.kind in "iu":
        if layer.stored is None:
            return math.inf
        output = (output.astype(np.float32) - layer.stored[1]) * layer.stored[0]
    if output.shape != layer.expected.shape or not np.isfinite(output).all():
        return math.inf
    largest = float(np.abs(layer.expected).max()) or 1.0
    return float(np.abs(output - layer.expected).max()) / largest


def _spring(target: Target, tell: Progress) -> Iterable[TrapProbe]:
    for trap in target.traps:
        spring = TRAP_PROBES.get(trap.id)
        if spring is None:
            yield TrapProbe(trap.id, None, "no probe is written for it")
            continue
        tell(f"springing trap {trap.id}")
        try:
            armed, what = spring()
        except QcError as error:
            yield TrapProbe(trap.id, None, f"cannot be probed: {error.diagnostic.message}")
        except runtime_errors() as error:
            yield TrapProbe(trap.id, None, f"cannot be probed: {error}"[:200])
        else:
            yield TrapProbe(trap.id, armed, what)


def _with_timings(row: RowProbe, timings: Sequence[Timing]) -> RowProbe:
    mine = tuple(item for item in timings if item.key.split("/")[0] == row.kernel)
    if not mine or row.form is not Form.ORT:
        return row
    speedup = statistics.median(item.speedup for item in mine)
    return dataclasses.replace(row, speedup=speedup, timings=mine)

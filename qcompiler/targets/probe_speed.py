"""Time the rows of a target against float at several sizes, and collect samples for their costs."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.cost import Work, evaluate, lookup
from qcompiler.targets.fit import refit_cost
from qcompiler.targets.probe_conversions import CONVERSIONS, FLOAT_OPERATORS, pointwise_case
from qcompiler.targets.probe_layers import Build, ConvShape, Probed, model_of, probed_layer
from qcompiler.targets.probe_timing import Case, time_cases
from qcompiler.targets.schema import Cost, Kernel, Target

__all__ = ["Measured", "Timing", "measure"]

_SEED = 7
_KNOTS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)  # rows at which linear layers are timed
_CONV_KNOTS = (64.0, 1024.0, 8192.0)  # output pixels

_LINEAR = tuple((int(m), k, n) for k, n in ((384, 1536), (1536, 384), (1024, 1024)) for m in _KNOTS)
_LINEAR_QUICK = tuple((m, k, n) for k, n in ((384, 1536), (1024, 1024)) for m in (1, 16, 256))
_CONVS = (
    ConvShape(1, 96, 24, 1, 56),
    ConvShape(1, 16, 96, 1, 112),
    ConvShape(1, 256, 256, 1, 28),
    ConvShape(1, 640, 160, 1, 7),
    ConvShape(1, 64, 64, 3, 56),
    ConvShape(1, 256, 256, 3, 14),
    ConvShape(1, 512, 512, 3, 7),
    ConvShape(1, 96, 96, 3, 56, group=96),
    ConvShape(1, 144, 144, 3, 28, group=144),
    ConvShape(1, 480, 480, 5, 14, group=480),
    ConvShape(1, 3, 32, 3, 224, stride=2),
    ConvShape(1, 3, 16, 3, 112, stride=2),
    ConvShape(1, 3, 64, 7, 112, stride=2),
)
_CONVS_QUICK = (_CONVS[0], _CONVS[2], _CONVS[4], _CONVS[5], _CONVS[7], _CONVS[9], *_CONVS[10:12])
_FLAT = ((32, 384), (128, 768), (1024, 768))
_POOLS = ((1, 64, 14, 14), (1, 64, 56, 56), (1, 96, 112, 112))
_LONG = 4e7  # multiply-accumulates of a layer that alone runs long enough to be timed
_GATHERS = ((32, 30000, 384), (1024, 30000, 384))


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """One layer, timed in a kernel and in float.

    Attributes:
        layer: What was timed, for people.
        key: Cost key of the kernel.
        us: Microseconds in the kernel.
        float_us: Microseconds in float.
    """

    layer: str
    key: str
    us: float
    float_us: float

    @property
    def speedup(self) -> float:
        """How many times faster than float."""
        return self.float_us / self.us


class Measured:
    """Samples for the fits, by cost key, and timings of kernels against float."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.samples: dict[str, list[tuple[Work, float]]] = {}
        self.timings: list[Timing] = []
        self.noises: list[float] = []

    def __bool__(self) -> bool:
        return bool(self.samples)

    def add(self, key: str, work: Work, us: float) -> None:
        """Note one measurement."""
        self.samples.setdefault(key, []).append((work, us))

    def costs(self, known: Mapping[str, Cost]) -> dict[str, Cost]:
        """A cost for each key that was measured, starting from the known ones."""
        return {
            key: refit_cost(lookup(known, key), samples, _knots(key))
            for key, samples in self.samples.items()
        }

    def speed(self, known: Mapping[str, Cost]) -> float:
        """How much slower float operators are here than known: the median over all samples."""
        shares = [
            us / before
            for key, samples in self.samples.items()
            if key.startswith("float.") and (cost := lookup(known, key)) is not None
            for work, us in samples
            if (before := evaluate(cost, work)) > 0
        ]
        return statistics.median(shares) if shares else 1.0


def _knots(key: str) -> tuple[float, ...]:
    if "onv" in key:
        return _CONV_KNOTS if key.endswith(("dense", "pointwise")) else _CONV_KNOTS[1:2]
    return _KNOTS if "MatMul" in key or key.startswith("matmul") else ()


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One thing to time: its cost key, its work, a ready case, and how many layers it holds."""

    key: str
    work: Work
    case: Case
    count: int


def measure(
    target: Target,
    rows: Sequence[Kernel],
    measured: Measured,
    *,
    quick: bool,
    end: float,
    threads: int,
    tell: Callable[[str], None],
) -> bool:
    """Time everything, most important first, until it is done or time is up."""
    rounds, seconds = (3, 0.002) if quick else (5, 0.004)
    overhead = _overhead(threads)
    for name, make in _jobs(target, rows, quick, threads):
        if time.perf_counter() > end:
            return False
        tell(f"timing {name}")
        entries = make()
        times = time_cases([entry.case for entry in entries], rounds, seconds)
        found = {}
        for entry, time_ in zip(entries, times, strict=True):
            each = max(time_.us - overhead, 0.05 * time_.us) / entry.count
            measured.noises.append(time_.noise)
            found[entry.key] = each
            measured.add(entry.key, entry.work, each)
        _compare(name, found, measured)
    return True


def _compare(name: str, found: Mapping[str, float], measured: Measured) -> None:
    base = next((us for key, us in found.items() if key.startswith("float.")), None)
    if base is None:
        return
    for key, us in found.items():
        if not key.startswith("float."):
            measured.timings.append(Timing(name, key, us, base))


def _overhead(threads: int) -> float:
    """Microseconds of a run that computes nothing."""
    feed = {"x": np.zeros(4, np.float32)}
    build: Build = lambda t, v: t.op("Identity", v["x"])  # noqa: E731 - a table entry
    case = Case(model_of([build], feed), feed, SessionSettings("disable"), threads)
    return time_cases([case], 5, 0.002)[0].us


_Job = tuple[str, Callable[[], list[_Entry]]]


def _jobs(target: Target, rows: Sequence[Kernel], quick: bool, threads: int) -> Iterable[_Job]:
    linear = [row for row in rows if row.op == "MatMul"]
    convs = [row for row in rows if row.op == "Conv"]
    for size in (_LINEAR_QUICK if quick else _LINEAR) if linear else ():
        make = functools.partial(_linear_entries, linear, target, size, threads)
        yield f"MatMul {_times(size)}", make
    for shape in (_CONVS_QUICK if quick else _CONVS) if convs else ():
        yield _conv_name(shape), functools.partial(_conv_entries, convs, target, shape, threads)
    for key in (*CONVERSIONS, *(() if quick else FLOAT_OPERATORS)):
        for flat in _FLAT[1:] if quick else _FLAT:
            make = functools.partial(_conversion_entries, key, flat, threads)
            yield f"{key} {_times(flat)}", make
    for row in rows:
        for small in _sizes(row)[1:] if quick else _sizes(row):
            make = functools.partial(_layer_entries, row, target, small, threads)
            yield f"{row.op} {_times(small)}", make


def _sizes(row: Kernel) -> tuple[tuple[int, ...], ...]:
    if row.op in ("MatMul", "Conv"):
        return ()
    if row.op == "Gather":
        return _GATHERS
    return _POOLS if "Pool" in row.op or row.op == "Concat" else _FLAT


def _copies(macs: int) -> int:
    """Layers in one model: many small ones share the cost of a run; a long run gets disturbed."""
    return max(1, min(6, round(_LONG / max(macs, 1))))


def _case(builds: Sequence[Build], layer: Probed, form: str, level: str, threads: int) -> Case:
    settings = SessionSettings("all" if level == "all" else "disable")
    return Case(model_of(builds, layer.feeds[form]), layer.feeds[form], settings, threads)


def _linear_entries(
    rows: Sequence[Kernel], target: Target, size: tuple[int, ...], threads: int
) -> list[_Entry]:
    entries: list[_Entry] = []
    for row in rows:
        for bits in (8, 4, 2) if row.scheme.value == "weight" else (8,):
            key = f"{row.id}/{bits}" if row.scheme.value == "weight" else row.id
            count = _copies(math.prod(size))
            layers = [
                probed_layer(row, target, size, _SEED + i, bits=bits, numbers=False)
                for i in range(count)
            ]
            first = layers[0]
            if not entries:
                floats = [layer.builds["float"] for layer in layers]
                case = _case(floats, first, "float", "disable", threads)
                entries.append(_Entry("float.MatMul", first.work, case, count))
            form = "kernel" if "kernel" in first.builds else "ort"
            builds = [layer.builds[form] for layer in layers]
            case = _case(builds, first, form, "disable", threads)
            entries.append(_Entry(key, first.work, case, count))
    return entries


def _conv_entries(
    rows: Sequence[Kernel], target: Target, shape: ConvShape, threads: int
) -> list[_Entry]:
    """Chains of layers, as in a network: there and back where the channels differ."""
    entries = []
    for row in rows:
        stem = shape.stride > 1
        back = dataclasses.replace(shape, channels=shape.filters, filters=shape.channels)
        there_and_back = [shape, back] * (1 if _macs(shape) > _LONG else 2)
        shapes = [shape] * 3 if stem else there_and_back
        layers = [
            probed_layer(row, target, one, _SEED + i, numbers=False) for i, one in enumerate(shapes)
        ]
        work = layers[0].work
        for key, form in (("float.Conv", "float"), (row.id, "ort")):
            chosen = [layer.builds[form] for layer in layers]
            builds = [_pooled(build, form, row) for build in chosen] if stem else [_chain(chosen)]
            case = _case(builds, layers[0], form, "all", threads)
            entries.append(_Entry(work.key(key), work, case, len(layers)))
    return entries


def _macs(shape: ConvShape) -> int:
    return shape.filters * shape.channels // shape.group * (shape.kernel * shape.size) ** 2


def _chain(builds: Sequence[Build]) -> Build:
    def build(tape: Any, values: Mapping[str, Any]) -> Any:
        x = values["x"]
        for one in builds:
            x = one(tape, {"x": x})
        return x

    return build


def _pooled(build: Build, form: str, row: Kernel) -> Build:
    """A pool behind the layer: the runtime need not bring its large output into NCHW order."""

    def pooled(tape: Any, values: Mapping[str, Any]) -> Any:
        x = build(tape, values)
        if form == "float":
            return tape.op("GlobalAveragePool", x)
        assert row.output is not None
        scale, zero = np.asarray(0.02, np.float32), np.asarray(0, row.output.dtype.numpy())
        return tape.op(
            "QLinearGlobalAveragePool",
            *(x, scale, zero, scale, zero),
            domain="com.microsoft",
            channels_last=0,
        )

    return pooled


def _layer_entries(
    row: Kernel, target: Target, size: tuple[int, ...], threads: int
) -> list[_Entry]:
    layer = probed_layer(row, target, size, _SEED)
    entries = []
    for key, form in ((f"float.{row.op}", "float"), (row.id, "ort")):
        case = _case([layer.builds[form]] * 4, layer, form, "disable", threads)
        entries.append(_Entry(key, layer.work, case, 4))
    return entries


def _conversion_entries(key: str, size: tuple[int, ...], threads: int) -> list[_Entry]:
    build, feed = pointwise_case(key, size)
    model = model_of([build] * 4, feed, opset=23)
    case = Case(model, feed, SessionSettings("disable"), threads)
    return [_Entry(key, Work(0, size[0], math.prod(size)), case, 4)]


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _conv_name(shape: ConvShape) -> str:
    kind = f"{shape.kernel}x{shape.kernel} {shape.channels}->{shape.filters}"
    return f"Conv {kind} at {shape.size}" + (" depthwise" if shape.group > 1 else "")

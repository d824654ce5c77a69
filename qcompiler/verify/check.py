"""All checks of one artifact: it loads, its outputs, its kernels, its speed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import constant
from qcompiler.ir.provenance import origins
from qcompiler.ir.walk import all_nodes, captured, custom_operators
from qcompiler.pipeline.contract import Feed, State
from qcompiler.plan import Plan, Verdict
from qcompiler.runtime.kv_cache import cache_in_floats
from qcompiler.runtime.settings import SessionSettings
from qcompiler.scratch import Scratch
from qcompiler.targets.schema import Target
from qcompiler.verify.fidelity import OutputFidelity, compare_outputs, judge
from qcompiler.verify.float_session import FloatSession, file_of
from qcompiler.verify.kernels import Proof, prove

if TYPE_CHECKING:
    from qcompiler.runtime.profile import Profiler

__all__ = ["Checked", "check_artifact", "difference", "host_fits", "refuse_wrong"]

_LATENCY_SECONDS = 0.5  # enough for ~10 pairs of a 30 ms model; longer only delays the compile
_SECOND_LOOK_SECONDS = 3.0
_SHAPES_TOLD = 4  # inputs of a feed
# Exact rewrites reorder float32 sums, so equality is up to rounding of the largest value.
_SELECTING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
_EXACT_RTOL = 1e-4
# Where a graph computes in 16 bits, it rounds to their 11 bits at each step.
_HALF_RTOL = 1e-2
# Where a graph rounds activations inside, that tips some of them over to the next integer.
_ROUNDING_RTOL = 0.1


@dataclasses.dataclass(frozen=True)
class Checked:
    """What verification found.

    Attributes:
        fidelity: Per output.
        proof: Planned and seen kernels; None where not provable.
        latency: ``float_ms``, ``artifact_ms``, ``ratio`` (> 1 is faster), ``runs``, ``feed``.
        profile: Times by operator, see :class:`qcompiler.report.model.Report`.
        diagnostics: Codes QC6xx.
    """

    fidelity: tuple[OutputFidelity, ...] = ()
    proof: Proof | None = None
    latency: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    profile: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()

    def slower_than(self, tolerated: float) -> bool:
        """Whether the artifact was measured slower than float by more than ``tolerated``."""
        return bool(self.latency) and self.latency["ratio"] < 1.0 / (1.0 + tolerated)


def check_artifact(
    reference: ir.Model,
    candidate: ir.Model,
    state: State,
    samples: Sequence[Feed],
    *,
    threads: int | None = None,
    source: str = "",
    opening: FloatSession | None = None,
) -> Checked:
    """Run every check that this host can do.

    Args:
        reference: The user's float model, run as a user would: a session with default options.
        candidate: The emitted model.
        state: Its plan, target, recipe and session options.
        samples: Feeds to compare on. The first is also timed, and one of another size on which the
            artifact looked slower than float.
        threads: Intra-op threads; None is the runtime's default.
        source: Path of the float model when it is an ONNX file (saves serializing it).
        opening: Its session, when it opens already; with the profiler on if the host fits the
            target. To be used once.

    Raises:
        QcError: QC606 the runtime refuses the artifact, QC607 the float model does not run.
    """
    if state.target.runtime != "onnxruntime" and not _runs_standard_onnx(candidate):
        return Checked(diagnostics=(_not_verified(f"runtime {state.target.runtime} is not here"),))
    if not samples:
        return Checked(diagnostics=(_not_verified("there is no feed to run it on"),))
    from qcompiler.runtime.kernels import read_optimized
    from qcompiler.runtime.profile import Profiler
    from qcompiler.runtime.session import open_session

    fits = host_fits(state.target)
    plan = state.plan
    provable = fits and plan is not None and _is_quantized(plan)
    with contextlib.ExitStack() as held:
        if opening is None:  # beside the other: each loads on one core
            given = file_of(source) or reference
            beside = concurrent.futures.ThreadPoolExecutor(1)
            opening = FloatSession(given, beside, threads=threads, profiled=fits)
            held.callback(opening.close)
            held.enter_context(beside)
        if custom := custom_operators(reference):
            try:
                opening.get()
            except QcError as error:
                said = f"the runtime does not know {', '.join(custom[:5])}"
                said = f"{said}: {error.diagnostic.message}"
                return Checked(diagnostics=(_not_verified(said),))
        folder = held.enter_context(Scratch())
        optimized = folder / "optimized.onnx" if provable else None
        session = open_session(
            candidate,
            settings=state.session,
            threads=threads,
            optimized_path=optimized,
            profile=folder / "artifact" if fits else None,
        )
        proof = None
        if plan is not None and optimized is not None:
            proof = prove(plan, state.target, read_optimized(optimized), _standing(candidate))
        float_session = opening.get()
        before, after = Profiler(float_session), Profiler(session)
        fidelity = compare_outputs(
            lambda feed: before.run(feed, code=Code.FLOAT_MODEL_FAILS),
            lambda feed: cache_in_floats(candidate, after.run(feed, code=Code.DOES_NOT_LOAD)),
            samples,
            Padding.of(reference, state.recipe.calibration.mask),
        )
        profile = _profile(before, after, state) if fits else {}
    only_weights = plan is not None and plan.only_weights
    steps = _output_steps(candidate)
    diagnostics = judge(
        fidelity,
        state.recipe.verify,
        only_weights=only_weights,
        steps=steps,
        counted=_counted_outputs(reference),
    )
    if not fits:
        diagnostics.append(
            _not_verified(
                f"target {state.target.name} is not this host: kernels and speed unproven"
            )
        )
    if proof is not None:
        diagnostics.extend(proof.diagnostics())
    latency: Mapping[str, Any] = {}
    tolerated, timed = state.recipe.verify.max_slowdown, samples[0]
    if fits:
        latency, timed = _timed(before, after, float_session, session, samples, tolerated)
    checked = Checked(fidelity, proof, latency, profile, tuple(diagnostics))
    if checked.slower_than(tolerated):
        # a verdict that throws work away wants more than half a second of a noisy machine
        latency = _latency(float_session, session, timed, _SECOND_LOOK_SECONDS)
        checked = dataclasses.replace(checked, latency=latency)
    return checked


def _counted_outputs(model: ir.Model) -> set[str]:
    """Outputs whose sizes may hang on what operators select by value."""
    selected: set[ir.Value] = set()
    for node in model.graph:
        inside = (*node.inputs, *captured(node))
        if node.op_type in _SELECTING or any(value in selected for value in inside):
            selected.update(node.outputs)
    return {str(value.name) for value in model.graph.outputs if value in selected}


def _output_steps(model: ir.Model) -> dict[str, float]:
    """Scales of the outputs that come out of integers with one scale for all."""
    steps = {}
    for output in model.graph.outputs:
        node = output.producer()
        if node is None or node.op_type != "DequantizeLinear" or output.name is None:
            continue
        scale = constant(node.inputs[1])
        if scale is not None and scale.size == 1:
            steps[output.name] = float(scale.reshape(()))
    return steps


def difference(before: ir.Model, after: ir.Model, state: State) -> str | None:
    """What differs between two models that should compute the same, or None.

    Compared on the state's sample feed with graph optimizations off, to a relative error of 1e-4
    of the largest value of each output; 0.01 where the graph has floats of 16 bits, 0.1 where it
    rounds activations itself.
    """
    if state.sample is None:
        return None
    from qcompiler.frontends.admission import is_quantized
    from qcompiler.runtime.session import open_session, run, tensors_of

    plain = SessionSettings(level="disable")
    tolerated = _HALF_RTOL if _has_half(before) else _EXACT_RTOL
    tolerated = _ROUNDING_RTOL if is_quantized(before) else tolerated
    try:
        found = run(open_session(before, settings=plain), state.sample)
        want = cache_in_floats(before, found)
    except QcError:
        if custom_operators(before):  # what does not run cannot be compared
            return None
        raise
    got = cache_in_floats(after, run(open_session(after, settings=plain), state.sample))
    want, got = tensors_of(want), tensors_of(got)
    for name, x in want.items():
        y = got.get(name)
        if y is None or x.shape != y.shape:
            return f"output {name} has shape {None if y is None else y.shape}, wanted {x.shape}"
        if x.dtype.kind != "f":
            if not np.array_equal(x, y):
                return f"output {name} differs"
            continue
        known = np.isfinite(x)  # where float overflows there is nothing to keep
        bound = tolerated * max(float(np.abs(x[known]).max(initial=0.0)), 1e-6)
        error = float(np.abs(x[known].astype(np.float64) - y[known]).max(initial=0.0))
        if not error <= bound:
            return f"output {name} differs by {error:.3g}, tolerated {bound:.3g}"
    return None


def _has_half(model: ir.Model) -> bool:
    values = (*model.graph.inputs, *model.graph.initializers.values())
    return any(value.dtype is ir.DataType.FLOAT16 for value in values)


def _is_quantized(plan: Plan) -> bool:
    return any(item.verdict is Verdict.QUANTIZED for item in plan)


def _profile(before: Profiler, after: Profiler, state: State) -> dict[str, Any]:
    from qcompiler.report.operators import by_family, by_planned

    float_times, times = before.times(), after.times()
    if float_times is None or times is None:
        return {}
    planned = state.plan.nodes if state.plan is not None else {}
    return {
        "source": "measured",
        "runs": times.runs,
        "float": by_family(float_times.ops),
        "artifact": by_family(times.ops),
        "nodes": by_planned(times.nodes, planned),
    }


def _latency(
    float_session: Any, session: Any, feed: Feed, seconds: float, *, until_clear: bool = False
) -> dict[str, Any]:
    from qcompiler.runtime.timing import compare_latency

    measured = compare_latency(float_session, session, feed, seconds, until_clear=until_clear)
    return {
        "float_ms": measured.a_ms,
        "artifact_ms": measured.b_ms,
        "ratio": measured.ratio,
        "runs": measured.runs,
        "feed": _shapes(feed),
    }


def _seen_latency(before: Profiler, after: Profiler, samples: Sequence[Feed]) -> dict[str, Any]:
    """The median of the runs that compared the outputs; empty when they leave room for doubt."""
    from qcompiler.runtime.timing import clear_round

    a, b = before.seconds[1:], after.seconds[1:]  # the first runs warm up
    chosen = clear_round(a, b)
    if chosen is None:
        return {}
    return {
        "float_ms": a[chosen] * 1e3,
        "artifact_ms": b[chosen] * 1e3,
        "ratio": a[chosen] / b[chosen],
        "runs": len(a),
        "feed": _shapes(samples[1 + chosen]),
    }


def _timed(
    before: Profiler, after: Profiler, a: Any, b: Any, samples: Sequence[Feed], tolerated: float
) -> tuple[Mapping[str, Any], Feed]:
    """How fast session ``b`` is beside ``a``; of two feeds the one on which it does worse."""
    latency, first = _seen_latency(before, after, samples), samples[0]
    if latency:
        return latency, first
    latency = _latency(a, b, first, _LATENCY_SECONDS, until_clear=True)
    suspect = _suspect(before.seconds, after.seconds, samples, tolerated)
    if not latency or suspect is None:
        return latency, first
    again = _latency(a, b, suspect, _LATENCY_SECONDS, until_clear=True)
    return (again, suspect) if again["ratio"] < latency["ratio"] else (latency, first)


def _suspect(
    a: Sequence[float], b: Sequence[float], samples: Sequence[Feed], tolerated: float
) -> Feed | None:
    """The feed of another size than the first on which the artifact looked slower than float.

    Args:
        a: Seconds of the float model's runs that compared the outputs, by feed.
        b: Of the artifact's.
        samples: The feeds.
        tolerated: Share by which it may be slower.

    Returns:
        The one that looked slowest; a single run may deceive, so it is to be timed.
    """
    first = _sizes(samples[0])
    found = [
        (x / y, index)
        for index, (x, y) in enumerate(zip(a, b, strict=True))
        if y > 0 and _sizes(samples[index]) != first and x / y < 1.0 / (1.0 + tolerated)
    ]
    return samples[min(found)[1]] if found else None


def _sizes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def _shapes(feed: Feed) -> str:
    """Names and shapes of the first few; a decoder has 60 pasts."""
    said = [f"{name}[{'x'.join(map(str, a.shape))}]" for name, a in feed.items()]
    rest = len(said) - _SHAPES_TOLD
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(said[:_SHAPES_TOLD]) + more


def _standing(model: ir.Model) -> dict[str, list[str]]:
    """Names of nodes by the user's node that they stand for."""
    found: dict[str, list[str]] = {}
    for node in all_nodes(model):
        for name in origins(node):
            found.setdefault(name, []).append(node.name or "")
    return found


def host_fits(target: Target) -> bool:
    """Whether kernels and speed of the target can be seen on this machine."""
    from qcompiler.targets.registry import host_flags

    return target.runtime == "onnxruntime" and set(target.isa) <= host_flags()


def _runs_standard_onnx(model: ir.Model) -> bool:
    return set(model.opset_imports) <= {"", "ai.onnx", "com.microsoft"}


def _not_verified(why: str) -> Diagnostic:
    return Diagnostic(Code.NOT_VERIFIED, "", why, "run `qcompile verify` on a host of the target")


def refuse_wrong(checked: Checked) -> None:
    """Raise the first WRONG_RESULT diagnostic: a wrong result is an error, strict or not."""
    for item in checked.diagnostics:
        if item.code is Code.WRONG_RESULT:
            raise QcError(item.code, item.where, item.message, item.hint, **item.values)

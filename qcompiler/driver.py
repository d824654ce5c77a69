"""``qcompile``: front end, pipeline, verification, artifact."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir

from qcompiler.artifact import Artifact, check_place, model_bytes
from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.ir.edit import remove_dead
from qcompiler.ir.provenance import module_of, origins
from qcompiler.ir.text import model_text
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import Feed, Pass, State
from qcompiler.pipeline.quantized import quantized_pipeline
from qcompiler.pipeline.registry import default_pipeline, parse_pipeline, pipeline_text
from qcompiler.pipeline.run import Compare, PassTiming, run_pipeline
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.recipe import Recipe
from qcompiler.report.layers import with_layers
from qcompiler.report.model import Report, coverage, removed_decisions
from qcompiler.runtime.settings import SessionSettings
from qcompiler.sensitivity.metric import Metric
from qcompiler.sensitivity.returning import is_wanted
from qcompiler.targets.activations import form_for
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form, Scheme, Target
from qcompiler.verify.check import Checked, check_artifact, refuse_wrong

__all__ = ["compile_float", "qcompile"]

Progress = Callable[[str], None]
_JUDGED_SAMPLES = 64  # of the calibration data, for the default metric


def qcompile(
    model: Any,
    target: str | os.PathLike[str] | Target = "cpu",
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    calibration: Any = None,
    example_inputs: Any = None,
    form: str | Form | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    plan: Plan | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    strict: bool = False,
    threads: int | None = None,
    check: bool | None = None,
    dump: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    metric: Metric | None = None,
) -> Artifact:
    """Compile a model into a quantized ONNX artifact for one target.

    With nothing but a model the result is dynamic int8 where the target's measured cost says that
    it pays, float elsewhere. With calibration data static kernels come in. Each node ends with a
    verdict (``artifact.plan``), and the result is run, compared with float, checked for the planned
    kernels and, on a host that fits the target, measured (``artifact.report``).

    Args:
        model: Path of an ONNX file or transformers folder, ``onnx.ModelProto``, ``onnx_ir.Model``,
            ``torch.nn.Module``, ``ExportedProgram``, ``fx.GraphModule`` or ``PreTrainedModel``.
            Never modified.
        target: Built-in name (``cpu`` is the host; see ``qcompile targets``), path of a target
            file, or a :class:`~qcompiler.targets.schema.Target`.
        recipe: Name, path of a TOML/YAML/JSON file, mapping or :class:`Recipe`; None is ``auto``.
        calibration: Iterable of feeds (dict name -> array, tuple, or array), a callable returning
            one, a torch DataLoader, or the path of an ``.npz`` file or of a folder of them.
        example_inputs: For torch models: a tuple or dict of tensors.
        form: ``ort`` (ONNX Runtime's operators) or ``qdq`` (portable); None is the target's, or the
            one in which it has the activations that the recipe names.
        output: Folder to save the artifact to as well.
        plan: A plan (or its file) to follow instead of deciding anew.
        strict: Raise on diagnostics of level error instead of reporting them.
        threads: Intra-op threads of the verification sessions; None leaves it to the runtime.
        check: Hold every pass to its contract (slow); None reads ``QC_CHECK``.
        dump: Folder for the graph's text after each pass; None reads ``QC_DUMP``.
        progress: Called with the name of each step.
        metric: What the recipe's ``max_drop`` bounds: takes a callable (feed -> outputs by name)
            and returns a number, higher being better. None is the cosine of the outputs with
            float's on the calibration data.

    Returns:
        The artifact.

    Raises:
        QcError: What the user can mend, with a code; see ``docs/diagnostics.md``.
    """
    clock = _Clock(progress)
    recipe = Recipe.of(recipe)  # type: ignore[arg-type]
    resolved = load_target(target)
    wanted = _form(form, resolved, recipe)
    given = _plan(plan)
    _check_threads(threads)
    if output is not None:
        check_place(output)  # before minutes of work, not after
    with clock("open"):
        from qcompiler.frontends import open_model

        opened = open_model(model, example_inputs)
    reference = opened.model
    with clock("calibration data"):
        feeds, samples = _feeds(calibration, reference, recipe)
    state = State(
        target=resolved,
        recipe=recipe,
        form=wanted,
        feeds=feeds,
        sample=samples[0] if samples else opened.example,
        plan=given,
    )
    timings: list[PassTiming] = []
    passes: Sequence[Pass] = ()
    if opened.quantized and recipe.pipeline is None:
        passes = quantized_pipeline()
    else:
        passes = _passes(recipe)
    layers: tuple[Mapping[str, Any], ...] = ()
    _check_metric(metric, recipe)
    if is_wanted(recipe) and not opened.quantized:
        artifact_model, timings, state, layers = _by_sensitivity(
            reference, state, passes, clock, check, _path(dump), metric
        )
    else:
        artifact_model, timings = _lower(reference, state, passes, clock, check, _path(dump))
    state.diagnostics.extend(opened.diagnostics)
    checked = Checked()
    if recipe.verify.enabled:
        if not samples:
            samples = [state.sample] if state.sample is not None else []
        with clock("verify"):
            checked = check_artifact(
                reference, artifact_model, state, samples, threads=threads, source=opened.source
            )
        slower = checked.slower_than(recipe.verify.max_slowdown)
        may_drop = given is None and not recipe.force  # what the user spelled out stays
        if slower and recipe.verify.guard and may_drop and _is_quantized(state.plan):
            with clock("fall back to float"):
                passes = ()
                artifact_model, state, checked = _fall_back(
                    reference, state, checked, samples, threads, opened.source, opened.quantized
                )
    refuse_wrong(checked)
    assert state.plan is not None
    final = dataclasses.replace(
        state.plan, removed=removed_decisions(state.removed, _operators(reference))
    )
    diagnostics = _unique([*state.diagnostics, *checked.diagnostics])
    report = Report(
        source=_describe(reference, opened.kind, opened.source),
        target=resolved.name,
        recipe=recipe.name,
        form=wanted.value,
        coverage=coverage(final),
        calibration=_calibration(state),
        fidelity=tuple(item.to_dict() for item in checked.fidelity),
        kernels=checked.proof.to_dict() if checked.proof else {},
        latency=checked.latency,
        profile=checked.profile,
        weights=_weights(state),
        layers=layers,
        sizes={
            "float_bytes": model_bytes(reference),
            "artifact_bytes": model_bytes(artifact_model),
        },
        timings=clock.report(timings),
        versions=_versions(),
        diagnostics=diagnostics,
    )
    if strict and report.errors:
        first = report.errors[0]
        raise QcError(first.code, first.where, first.message, first.hint, **first.values)
    artifact = Artifact(
        model=artifact_model,
        plan=final,
        report=report,
        settings=state.session,
        manifest=_manifest(reference, resolved, recipe, passes, state),
    )
    if recipe.verify.layers and samples and not opened.quantized:
        with clock("compare layers"):
            artifact = with_layers(artifact, reference, samples, threads=threads)
    if output is not None:
        with clock("save"):
            artifact.save(output)
    return artifact


def compile_float(model: ir.Model, state: State) -> ir.Model:
    """The float form of ``model`` under the state's target: fused, and not prepared for integers."""
    copy = model.clone()
    exact = [item for item in default_pipeline() if item.phase.name == "FLOAT"]
    run_pipeline(exact, copy, state)
    remove_dead(copy)
    return copy


def _by_sensitivity(
    reference: ir.Model,
    state: State,
    passes: Sequence[Pass],
    clock: _Clock,
    check: bool | None,
    dump: pathlib.Path | None,
    metric: Metric | None,
) -> tuple[ir.Model, list[PassTiming], State, tuple[Mapping[str, Any], ...]]:
    """Compile, measure what each node does to the output, and return nodes to float as asked."""
    from qcompiler.calibration.padding import Padding
    from qcompiler.runtime.session import open_session, run
    from qcompiler.sensitivity.metric import Judge
    from qcompiler.sensitivity.returning import return_to_float
    from qcompiler.sensitivity.stages import Stages

    recipe = state.recipe
    run_passes = functools.partial(
        run_pipeline, check=check, dump=dump, compare=_compare(check), progress=clock.progress
    )
    with clock("passes"):
        stages = Stages(reference, state, passes, run_passes)
    feeds = _judging_feeds(state)

    def judge() -> Judge:
        session = open_session(reference, code=Code.FLOAT_MODEL_FAILS)
        on = feeds or [feed for feed in (state.sample,) if feed is not None]
        padding = Padding.of(reference, recipe.calibration.mask)
        return Judge.of(metric, lambda feed: run(session, feed), on, padding, recipe.drop)

    with clock("sensitivity"):
        found = return_to_float(stages, recipe, feeds, judge, clock.progress)
    state = found.compiled.state
    state.diagnostics.extend(found.diagnostics)
    if state.plan is None:  # a pipeline of the user's without a deciding pass
        state.plan = _untouched(found.compiled.model, state, Code.NOT_SELECTED)
    return found.compiled.model, found.compiled.timings, state, found.layers()


def _judging_feeds(state: State) -> list[Feed]:
    """Some of the calibration data, which a generator gives only once."""
    feeds = state.feeds
    if feeds is None:
        return []
    if not feeds.reiterable:
        return [feeds.first]
    found, samples = [], 0
    for feed in feeds:
        found.append(feed)
        samples += next((len(x) for x in feed.values() if x.ndim), 1)
        if samples >= _JUDGED_SAMPLES:
            break
    return found


def _check_metric(metric: Metric | None, recipe: Recipe) -> None:
    if metric is None or (callable(metric) and recipe.max_drop is not None):
        return
    if callable(metric):
        raise QcError(
            Code.USAGE,
            "metric",
            "a metric is given and the recipe does not say how far it may drop",
            "set max_drop in the recipe, as {'base': 'static-int8', 'max_drop': 0.01}",
        )
    raise QcError(
        Code.USAGE,
        "metric",
        f"found a {type(metric).__name__}, wanted a callable",
        "give a function that takes a callable (feed -> outputs by name) and returns a number",
    )


def _compare(check: bool | None) -> Compare | None:
    if not (check or os.environ.get("QC_CHECK")):
        return None
    from qcompiler.verify.check import difference

    return difference


def _lower(
    reference: ir.Model,
    state: State,
    passes: Sequence[Pass],
    clock: _Clock,
    check: bool | None,
    dump: pathlib.Path | None,
) -> tuple[ir.Model, list[PassTiming]]:
    model = reference.clone()
    with clock("passes"):
        timings = run_pipeline(
            passes, model, state,
            check=check, dump=dump, compare=_compare(check), progress=clock.progress,
        )  # fmt: skip
    if state.plan is None:  # a pipeline of the user's without a deciding pass
        state.plan = _untouched(model, state, Code.NOT_SELECTED)
    return model, timings


def _fall_back(
    reference: ir.Model,
    state: State,
    measured: Checked,
    samples: Sequence[Feed],
    threads: int | None,
    source: str,
    quantized: bool,
) -> tuple[ir.Model, State, Checked]:
    """The float form, and the model as it came when even that is slower or it came quantized."""
    what, dropped = ("the model as it came", "new") if quantized else ("float", "quantized")
    said = Diagnostic(
        Code.MEASURED_SLOWER,
        "",
        f"measured {measured.latency['ratio']:.2f}x the speed of {what} on this host; "
        f"the {dropped} form was dropped",
        "a recipe with force = true keeps it; `qcompile probe --save` refits the cost model",
        dict(measured.latency),
    )
    base = dataclasses.replace(
        state, plan=None, ranges=None, weights=None, statistics=None, shapes=None,
        session=SessionSettings(), diagnostics=[*state.diagnostics, said], removed={},
    )
    if not quantized:
        fused = compile_float(reference, base)
        base.plan = _untouched(fused, base, Code.MEASURED_SLOWER)
        checked = check_artifact(reference, fused, base, samples, threads=threads, source=source)
        if not checked.slower_than(state.recipe.verify.max_slowdown):
            return fused, base, checked
    as_it_came = reference.clone()
    base.removed = {}
    base.plan = _untouched(as_it_came, base, Code.MEASURED_SLOWER)
    checked = check_artifact(reference, as_it_came, base, samples, threads=threads, source=source)
    return as_it_came, base, dataclasses.replace(checked, latency={})


def _untouched(model: ir.Model, state: State, code: Code) -> Plan:
    """A plan that keeps every node in float for one reason."""
    nodes = {}
    for node in all_nodes(model):
        reason = Diagnostic(code, node.name or "", code.explanation.rstrip(".").lower())
        nodes[node.name or ""] = NodeDecision(
            node.name or "", op_name(node), Verdict.FLOAT, reason=reason,
            origin=origins(node), module=module_of(node),
        )
    return Plan(state.target.name, state.recipe.name, state.form.value, nodes)


def _is_quantized(plan: Plan | None) -> bool:
    return plan is not None and any(item.verdict is Verdict.QUANTIZED for item in plan)


def _form(form: str | Form | None, target: Target, recipe: Recipe) -> Form:
    if form is None:
        static = Scheme.STATIC in recipe.schemes
        return form_for(target, recipe.activations) if static else target.form
    try:
        wanted = Form(form)
    except ValueError as error:
        raise QcError(
            Code.USAGE, "form", f"{form!r} is not a form", nearest(str(form), [f.value for f in Form])
        ) from error
    if wanted is Form.ORT and target.runtime != "onnxruntime":
        raise QcError(
            Code.TARGET_CANNOT, target.name, f"form 'ort' needs ONNX Runtime, not {target.runtime}",
            "use form 'qdq'",
        )
    return wanted


def _plan(plan: Plan | Mapping[str, Any] | str | os.PathLike[str] | None) -> Plan | None:
    if plan is None or isinstance(plan, Plan):
        return plan
    if isinstance(plan, Mapping):
        return Plan.from_dict(plan)
    if not isinstance(plan, str | os.PathLike):
        raise QcError(
            Code.BAD_PLAN,
            "plan",
            f"found a {type(plan).__name__}, wanted a Plan, a mapping or the path of a plan.json",
            "artifact.plan and artifact.plan.to_dict() are such",
        )
    path = pathlib.Path(plan)
    return Plan.load(path / "plan.json" if path.is_dir() else path)


def _check_threads(threads: int | None) -> None:
    if threads is None or (isinstance(threads, int) and threads >= 1):
        return
    raise QcError(
        Code.USAGE,
        "threads",
        f"found {threads!r}, wanted a whole number from 1 on",
        "leave it out to let the runtime choose",
    )


def _passes(recipe: Recipe) -> tuple[Pass, ...]:
    return parse_pipeline(recipe.pipeline) if recipe.pipeline else default_pipeline()


def _feeds(calibration: Any, model: ir.Model, recipe: Recipe) -> tuple[Any, list[Feed]]:
    """The checked source of feeds, and the few that verification will use."""
    if calibration is None:
        return None, []
    from qcompiler.calibration.feeds import open_feeds
    from qcompiler.runtime.inputs import input_specs

    feeds = open_feeds(calibration, input_specs(model), recipe.calibration.max_samples)
    if feeds.reiterable:
        return feeds, list(itertools.islice(feeds, recipe.verify.feeds))
    return feeds, [feeds.first]


def _path(text: str | os.PathLike[str] | None) -> pathlib.Path | None:
    return None if text is None else pathlib.Path(text)


def _operators(model: ir.Model) -> dict[str, str]:
    return {node.name or "": op_name(node) for node in all_nodes(model)}


def _calibration(state: State) -> dict[str, Any]:
    if not state.ranges:
        return {}
    from qcompiler.report.distributions import activation_ranges

    return {
        "method": state.recipe.calibration.method,
        "values": activation_ranges(state.ranges, state.statistics),
    }


def _weights(state: State) -> tuple[dict[str, Any], ...]:
    if not state.weights:
        return ()
    from qcompiler.report.distributions import weight_ranges

    return tuple(weight_ranges(state.weights))


def _describe(model: ir.Model, kind: str, source: str) -> dict[str, Any]:
    return {
        "name": pathlib.PurePath(source).name or source,
        "kind": kind,
        "nodes": sum(1 for _ in all_nodes(model)),
        "inputs": [value.name for value in model.graph.inputs],
        "outputs": [value.name for value in model.graph.outputs],
        "opset": model.opset_imports.get("", 0),
    }


def _manifest(
    reference: ir.Model, target: Target, recipe: Recipe, passes: Sequence[Pass], state: State
) -> dict[str, Any]:
    text = model_text(reference, digest=False)
    return {
        "producer": f"qcompiler {_version('qcompiler-onnx')}",
        "model": hashlib.sha256(text.encode()).hexdigest(),
        "target": target.name,
        "form": state.form.value,
        "recipe": recipe.model_dump(mode="json"),
        "pipeline": pipeline_text(passes),
        "seed": recipe.seed,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    names = ("qcompiler-onnx", "onnxruntime", "onnx", "onnx-ir", "numpy")
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _unique(diagnostics: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Without repeats (a fall-back runs the float passes twice), order kept."""
    return tuple({(d.code, d.where, d.message): d for d in diagnostics}.values())


class _Clock:
    """Seconds of each step; tells the progress callback."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.started = time.perf_counter()
        self.steps: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        if self.progress is not None:
            self.progress(step)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps[step] = time.perf_counter() - started

    def report(self, passes: Sequence[PassTiming]) -> dict[str, Any]:
        phases: dict[str, float] = {}
        for step, seconds in self.steps.items():
            if step != "passes":
                phases[step] = seconds
                continue
            for item in passes:
                phases[item.phase] = phases.get(item.phase, 0.0) + item.seconds
        return {
            "total": time.perf_counter() - self.started,
            "phases": phases,
            "passes": [dataclasses.asdict(item) for item in passes],
        }

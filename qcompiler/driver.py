"""``qcompile``: front end, pipeline, verification, artifact."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from qcompiler.ahead import Ahead
from qcompiler.arguments import (
    check_metric,
    check_usage,
    encoder_plan,
    resolve_feeds,
    resolve_form,
    resolve_part_feeds,
    resolve_passes,
    resolve_plan,
)
from qcompiler.artifact import Artifact, model_bytes
from qcompiler.clock import Clock, Progress
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.frontends.opened import ENCODER
from qcompiler.garbage import own_garbage
from qcompiler.guard import all_float, fall_back, is_quantized
from qcompiler.ir.walk import custom_operators
from qcompiler.key_facts import KeyFacts
from qcompiler.output_folder import check_place
from qcompiler.pipeline.contract import Feed, Pass, State
from qcompiler.pipeline.quantized import quantized_pipeline
from qcompiler.pipeline.run import Compare, PassTiming, run_pipeline
from qcompiler.plan import Plan
from qcompiler.recipe import Recipe
from qcompiler.report.assemble import assemble_report, complete_plan, make_manifest
from qcompiler.sensitivity.metric import Metric
from qcompiler.sensitivity.returning import is_wanted
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form, Target
from qcompiler.tuning.search import Tuned, is_tunable, tune
from qcompiler.unused_keys import unused_keys
from qcompiler.verify.check import Checked, check_artifact, refuse_wrong
from qcompiler.verify.layer_report import with_layers

__all__ = ["qcompile"]

_JUDGED_SAMPLES = 64  # of the calibration data, for the default metric


@own_garbage()
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
    work: str | os.PathLike[str] | None = None,
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
            one, a torch DataLoader, or the path of an ``.npz`` or ``.npy`` file or of a folder of
            them. For a language model also a list of strings, a text, JSON or JSONL file, tokens
            ``[n, length]``, or a data set with a column ``text`` or ``input_ids``. For an
            encoder-decoder feeds of ``audio_features`` and ``input_ids``, sound and its text.
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
        work: Folder for rounded weights of algorithms that take long. A compile that was killed
            goes on from there, to the same result.

    Returns:
        The artifact; of an encoder-decoder the decoder's, which holds the encoder's.

    Raises:
        QcError: What the user can mend, with a code; see ``docs/diagnostics.md``.
    """
    clock = Clock(progress)
    recipe = Recipe.of(recipe)  # type: ignore[arg-type]
    resolved = load_target(target)
    wanted = resolve_form(form, resolved, recipe)
    given = resolve_plan(plan)
    check_usage(threads, progress, dump=dump, work=work)
    check_metric(metric, recipe)
    if output is not None:
        check_place(output, keep_out=(dump, work))  # before minutes of work, not after
    with clock("open"):
        from qcompiler.frontends import open_model

        opened = open_model(model, example_inputs)
    reference, file = opened.model, opened.source
    encoder: Artifact | None = None
    if opened.encoder is not None:
        heard, calibration = resolve_part_feeds(
            calibration, opened.encoder.model, reference, recipe
        )
        encoder = qcompile(
            opened.encoder, resolved, recipe.of_encoder, heard, form=form,
            plan=encoder_plan(plan), strict=strict, threads=threads, check=check,
            dump=_inside(dump), progress=progress, work=_inside(work),
        )  # fmt: skip
    if recipe.last_logits:
        from qcompiler.frontends.decoder.last_logits import keep_last_logits

        keep_last_logits(reference, opened.source)
        file = ""  # what is compared with is no longer what the file holds
    with clock("calibration data"):
        feeds, samples, said = resolve_feeds(
            calibration, reference, recipe, model, quantized=opened.quantized
        )
    sample = samples[0] if samples else opened.example
    state = State(resolved, recipe, wanted, feeds=feeds, sample=sample, plan=given)
    state.work = None if work is None else pathlib.Path(work)
    state.diagnostics.extend(said)
    passes: Sequence[Pass] = (
        quantized_pipeline()
        if opened.quantized and recipe.pipeline is None
        else resolve_passes(recipe)
    )
    folder = None if dump is None else pathlib.Path(dump)
    with Ahead(reference, file, state, threads, page=output is not None) as ahead:
        tuned = _tuned(reference, state, passes, clock, opened.quantized)
        layers: tuple[Mapping[str, Any], ...] = ()
        if is_wanted(recipe) and not opened.quantized:
            compiled, timings, state, layers = _by_sensitivity(
                reference, state, passes, clock, check, folder, metric
            )
        else:
            compiled, timings = _lower(reference, state, passes, clock, check, folder)
            if is_wanted(recipe):
                state.diagnostics.append(_not_searched(opened.source))
        facts = KeyFacts(
            recipe, opened, state, given,
            calibrated=calibration is not None,
            exemplified=example_inputs is not None,
            passes=frozenset(item.name for item in passes),
        )  # fmt: skip
        unused = unused_keys(facts)
        state.diagnostics.extend((*opened.diagnostics, *unused, *tuned.diagnostics))
        checked = Checked()
        if not samples and state.sample is not None:
            samples = [state.sample]
        if recipe.verify.enabled:
            with clock("verify"):
                checked = check_artifact(
                    reference,
                    compiled,
                    state,
                    samples,
                    threads=threads,
                    source=file,
                    opening=ahead.session,
                )
            slower = checked.slower_than(recipe.verify.max_slowdown)
            forced = recipe.force or any(rule.force for rule in recipe.rules)
            may_drop = given is None and not forced  # what the user spelled out stays
            if slower and recipe.verify.guard and may_drop and is_quantized(state.plan):
                with clock("fall back to float"):
                    passes = ()
                    compiled, state, checked = fall_back(
                        reference, state, checked, samples, threads, file, opened.quantized
                    )
        digest = ahead.digest()
    refuse_wrong(checked)
    final = complete_plan(reference, state)
    sizes = {"float_bytes": model_bytes(reference), "artifact_bytes": model_bytes(compiled)}
    report = assemble_report(
        opened,
        state,
        final,
        checked,
        sizes=sizes,
        timings=clock.report(timings),
        layers=layers,
        steps=tuned.rows,
    )
    if strict and report.errors:
        first = report.errors[0]
        raise QcError(first.code, first.where, first.message, first.hint, **first.values)
    manifest = make_manifest(digest, state, passes)
    companions = opened.companions(state.session, encoder.settings if encoder else None)
    artifact = Artifact(compiled, final, report, state.session, manifest, companions, encoder)
    if recipe.verify.layers and samples and not opened.quantized:
        with clock("compare layers"):
            artifact = with_layers(artifact, reference, samples, threads=threads)
    if output is not None:
        with clock("save"):
            artifact.save(output)
    return artifact


def _inside(folder: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """Where the encoder's files go beside those of the decoder."""
    return None if folder is None else pathlib.Path(folder, ENCODER)


def _not_searched(source: str) -> Diagnostic:
    return Diagnostic(
        Code.SENSITIVITY_UNKNOWN,
        source,
        "the model came quantized: max_drop, keep_float and sensitivity are not applied to it",
        "compile the float model, or keep layers in float by rules",
    )


def _tuned(
    reference: ir.Model, state: State, passes: Sequence[Pass], clock: Clock, quantized: bool
) -> Tuned:
    """Find which steps for accuracy help, and put the recipe with these into the state."""
    if quantized or not is_tunable(state) or custom_operators(reference):
        return Tuned(state.recipe)
    with clock("try steps"):
        run_passes = functools.partial(run_pipeline, check=False, progress=clock.progress)
        tuned = tune(reference, state, passes, run_passes, clock.progress)
    state.recipe = tuned.recipe
    return tuned


def _by_sensitivity(
    reference: ir.Model,
    state: State,
    passes: Sequence[Pass],
    clock: Clock,
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
        made = Judge.of(metric, lambda feed: run(session, feed), on, padding, recipe.drop)
        made.generated = metric is None and not feeds
        return made

    with clock("sensitivity"):
        found = return_to_float(stages, recipe, feeds, judge, clock.progress)
    state = found.compiled.state
    state.diagnostics.extend(found.diagnostics)
    if state.plan is None:  # a pipeline of the user's without a deciding pass
        state.plan = all_float(found.compiled.model, state, Code.NOT_SELECTED)
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


def _compare(check: bool | None) -> Compare | None:
    if not (check or os.environ.get("QC_CHECK")):
        return None
    from qcompiler.verify.check import difference

    return difference


def _lower(
    reference: ir.Model,
    state: State,
    passes: Sequence[Pass],
    clock: Clock,
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
        state.plan = all_float(model, state, Code.NOT_SELECTED)
    return model, timings

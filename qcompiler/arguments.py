"""What the arguments of :func:`qcompiler.qcompile` mean; what they cannot mean is refused here."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from qcompiler.clock import Progress
from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.frontends.opened import ENCODER
from qcompiler.pipeline.contract import Feed, Pass
from qcompiler.pipeline.registry import default_pipeline, parse_pipeline
from qcompiler.plan import Plan
from qcompiler.recipe import Recipe
from qcompiler.runtime.session import check_threads
from qcompiler.sensitivity.metric import Metric
from qcompiler.targets.activations import form_for
from qcompiler.targets.schema import Form, Scheme, Target

__all__ = [
    "check_metric",
    "check_usage",
    "encoder_plan",
    "resolve_feeds",
    "resolve_form",
    "resolve_part_feeds",
    "resolve_passes",
    "resolve_plan",
]


def resolve_form(form: str | Form | None, target: Target, recipe: Recipe) -> Form:
    """The output form; QC411 for an unknown word, QC405 when the target has no such form."""
    if form is None:
        static = Scheme.STATIC in recipe.schemes
        return form_for(target, recipe.activations) if static else target.form
    try:
        wanted = Form(form)
    except ValueError as error:
        raise QcError(
            Code.USAGE,
            "form",
            f"{form!r} is not a form",
            nearest(str(form), [f.value for f in Form]),
        ) from error
    if wanted is Form.ORT and target.runtime != "onnxruntime":
        raise QcError(
            Code.TARGET_CANNOT,
            target.name,
            f"form 'ort' needs ONNX Runtime, not {target.runtime}",
            "use form 'qdq'",
        )
    return wanted


def resolve_plan(plan: Plan | Mapping[str, Any] | str | os.PathLike[str] | None) -> Plan | None:
    """The plan to follow, from a plan, its dict, its file or an artifact's folder; else QC408."""
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
    return Plan.load(path / "plan.json" if os.path.isdir(path) else path)


def encoder_plan(
    plan: Plan | Mapping[str, Any] | str | os.PathLike[str] | None,
) -> pathlib.Path | None:
    """The plan of an encoder, where ``plan`` is the folder of an encoder-decoder's artifact."""
    folder = pathlib.Path(plan, ENCODER) if isinstance(plan, str | os.PathLike) else None
    return folder if folder is not None and folder.is_dir() else None


def resolve_passes(recipe: Recipe) -> tuple[Pass, ...]:
    """The recipe's pipeline, else the default one."""
    return parse_pipeline(recipe.pipeline) if recipe.pipeline else default_pipeline()


def resolve_feeds(
    calibration: Any,
    model: ir.Model,
    recipe: Recipe,
    source: Any = None,
    *,
    quantized: bool = False,
) -> tuple[Any, list[Feed], tuple[Diagnostic, ...]]:
    """The checked source of feeds, the few that verification will use, and what is to be said.

    Args:
        calibration: What the user gave.
        model: The model inside the compiler.
        recipe: How many samples; how text is cut.
        source: The model as the user gave it: a tokenizer may lie beside it.
        quantized: Whether the model came quantized: then no weight is rounded.
    """
    from qcompiler.frontends.data import open_data

    said: tuple[Diagnostic, ...] = ()
    if calibration is None:
        weights = recipe.rounds_by_data and not quantized
        if not weights and recipe.kv_cache is None:
            return None, [], ()
        calibration, said = _own_feeds(model, recipe, source)
        if calibration is None:
            return None, [], ()
    most = recipe.calibration.max_samples
    feeds, told = open_data(calibration, model, source, recipe.text, most)
    said = (*said, *told)
    if not feeds.reiterable:
        return feeds, [feeds.first], said
    full = itertools.islice((feed for feed in feeds if not _is_empty(feed)), recipe.verify.feeds)
    return feeds, list(full) or [feeds.first], said


def _is_empty(feed: Feed) -> bool:
    """Whether there is not one sample in it, of which no shape and no time can be judged."""
    return all(array.ndim and not len(array) for array in feed.values())


def resolve_part_feeds(
    calibration: Any, encoder: ir.Model, decoder: ir.Model, recipe: Recipe
) -> tuple[Any, Any]:
    """Calibration data of an encoder and of its decoder; None each where there are none."""
    if calibration is None:
        return None, None
    from qcompiler.calibration.encoder_decoder import part_feeds

    return part_feeds(calibration, encoder, decoder, recipe.calibration.max_samples)


def _own_feeds(
    model: ir.Model, recipe: Recipe, source: Any
) -> tuple[list[Feed] | None, tuple[Diagnostic, ...]]:
    """Texts that the model writes itself; None where it is no decoder or the recipe has it off."""
    from qcompiler.calibration.text import feed_of
    from qcompiler.frontends.tokenizer import longest_text
    from qcompiler.runtime.inputs import input_specs
    from qcompiler.runtime.own_text import find_writer, write_texts

    count, length, seed = recipe.text.own_samples, recipe.text.length, recipe.text.seed
    writer = find_writer(model) if count else None
    if writer is None:
        return None, ()
    bounds = (writer.longest, longest_text(source))
    length = min((length, *(bound for bound in bounds if bound is not None)))
    tokens = write_texts(model, writer, count, length, seed)
    specs = input_specs(model)
    told = Diagnostic(
        Code.OWN_TEXT,
        "calibration",
        f"{count} texts of {length} tokens, drawn from the float model with seed {seed}",
        "give calibration text of the kind that the model will read",
        {"samples": count, "length": length, "seed": seed},
    )
    return [feed_of(row[None], specs) for row in tokens], (told,)


def check_usage(
    threads: int | None, progress: Progress | None, **folders: str | os.PathLike[str] | None
) -> None:
    """Refuse (QC411) what is no number of threads, no callable, or no path of a folder."""
    check_threads(threads)
    if progress is not None and not callable(progress):
        raise QcError(
            Code.USAGE,
            "progress",
            f"found a {type(progress).__name__}, wanted a callable",
            "give a function that takes the name of a step, as print",
        )
    for name, folder in folders.items():
        is_path = isinstance(folder, str | os.PathLike) and "\0" not in str(folder)
        if folder is not None and not is_path:
            raise QcError(
                Code.USAGE,
                name,
                f"found {folder!r:.80}, wanted the path of a folder",
                "give a path",
            )


def check_metric(metric: Metric | None, recipe: Recipe) -> None:
    """Refuse (QC411) a metric that cannot be called, or that nothing in the recipe bounds."""
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

"""Commands that compile: ``compile``, and ``explain``, which may plan a model first."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from qcompiler.cli.options import (
    Calibration,
    Form,
    Json,
    Model,
    RecipeOption,
    Target,
    Threads,
    load,
)
from qcompiler.cli.terminal import out, print_json, print_summaries, reports_json, steps
from qcompiler.diagnostics import Code, QcError

__all__ = ["compile_", "explain"]


def compile_(
    model: Model,
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="Folder to write.")],
    target: Target = "cpu",
    recipe: RecipeOption = None,
    calibration: Calibration = None,
    form: Form = None,
    plan: Annotated[
        pathlib.Path | None, typer.Option(help="A plan.json to follow instead of deciding.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail on diagnostics of level error.")] = False,
    threads: Threads = None,
    dump: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for the graph's text after each pass.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Return nodes to float until the outputs' cosine with float's has dropped by no "
            "more.",
            min=0.0,
        ),
    ] = None,
    keep_float: Annotated[
        int | None, typer.Option(help="Return the N most damaging nodes to float.", min=0)
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure each node's damage to the output.")
    ] = False,
    work: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for rounded weights: a compile that was killed goes on there."),
    ] = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Compile MODEL and write an artifact folder.

    Example: qcompile compile model.onnx --recipe static-int8 --calibration data.npz -o out
    """
    from qcompiler.driver import qcompile
    from qcompiler.recipe import Recipe

    asked = {"max_drop": max_drop, "keep_float": keep_float, "sensitivity": sensitivity or None}
    changes = {key: value for key, value in asked.items() if value is not None}
    with steps(quiet or json) as progress:
        artifact = qcompile(
            model,
            target=target,
            recipe=Recipe.of(recipe).changed(**changes),
            calibration=calibration,
            form=form,
            output=output,
            plan=plan,
            strict=strict,
            threads=threads,
            dump=dump,
            progress=progress,
            work=work,
        )
    if json:
        reports = {name: part.report for name, part in artifact.parts.items()}
        print_json({"output": str(output), **reports_json(reports)})
    elif not quiet:
        print_summaries({name: part.report for name, part in artifact.parts.items()})
        out.print(f"written to {output}")


def explain(
    source: Annotated[str, typer.Argument(help="Artifact folder, or a model to plan.")],
    target: Target = "cpu",
    recipe: RecipeOption = None,
    calibration: Calibration = None,
    removed: Annotated[
        bool, typer.Option(help="Also the nodes that exact rewrites folded away.")
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Rank nodes by their damage to the output.")
    ] = False,
    json: Json = False,
) -> None:
    """Tell of each node how it is quantized, or the coded reason why not."""
    from qcompiler.report.tables import plan_table, sensitivity_table, summary

    folder = pathlib.Path(source)
    if (folder / "manifest.json").is_file():
        _refuse_for_artifact(folder, target=target, recipe=recipe, calibration=calibration)
        artifact = load(folder)
    else:
        from qcompiler.driver import qcompile
        from qcompiler.recipe import Recipe

        plain = Recipe.of(recipe).changed(
            verify={"enabled": False}, **({"sensitivity": True} if sensitivity else {})
        )
        with steps(json) as progress:
            artifact = qcompile(source, target, plain, calibration, progress=progress)
    if json:
        said = [
            {"plan": part.plan.to_dict(), "report": part.report.to_dict()}
            for part in (artifact, artifact.encoder)
            if part is not None
        ]
        print_json({**said[0], **({"encoder": said[1]} if len(said) > 1 else {})})
        return
    for name, part in artifact.parts.items():
        if artifact.encoder is not None:
            out.rule(name)
        if sensitivity:
            out.print(sensitivity_table(part.report, part.plan))
            continue
        out.print(plan_table(part.plan, removed=removed))
        out.print()
        out.print(summary(part.report))


def _refuse_for_artifact(folder: pathlib.Path, **given: str | None) -> None:
    """Refuse (QC411) what only planning a model reads."""
    usual = {"target": "cpu", "recipe": None, "calibration": None}
    said = [f"--{name}" for name, value in given.items() if value != usual[name]]
    if said:
        raise QcError(
            Code.USAGE,
            str(folder),
            f"is an artifact, which is planned already; {', '.join(said)} would have no effect",
            "give the model to plan it anew, or leave the option out",
        )

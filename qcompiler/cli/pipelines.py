"""Commands about passes: ``passes`` and ``opt``."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Annotated, Any

import typer

from qcompiler.cli.options import Calibration, Json, Model, RecipeOption, Target
from qcompiler.cli.terminal import out, print_json

__all__ = ["opt", "passes"]


def passes(json: Json = False) -> None:
    """List the installed passes in pipeline order, with what they need and give."""
    from rich.table import Table

    rows = _rows()
    if json:
        print_json(rows)
        return
    table = Table(box=None)
    table.add_column("pass", no_wrap=True)  # as --passes wants it, in a narrow terminal too
    for name in ("phase", "exact", "what"):
        table.add_column(name)
    for row in rows:
        options = " ".join(f"{k}={v}" for k, v in row["options"].items())
        said = {"needs": ", ".join(row["needs"]), "gives": ", ".join(row["gives"])}
        more = [f"{key}: {what}" for key, what in {**said, "options": options}.items() if what]
        exact = "yes" if row["exact"] else "no"
        table.add_row(row["name"], row["phase"], exact, "\n".join([row["summary"], *more]))
    out.print(table)


def opt(
    model: Model,
    passes: Annotated[str, typer.Option(help="Pipeline text: name,name{option=value}.")],
    target: Target = "cpu",
    recipe: RecipeOption = None,
    calibration: Calibration = None,
    output: Annotated[
        pathlib.Path | None, typer.Option("--output", "-o", help="Write an ONNX file instead.")
    ] = None,
) -> None:
    """Run a pipeline on MODEL and print the graph's text (before and after: `--passes ''`)."""
    from qcompiler.cli.opt import run_opt

    text = run_opt(model, passes, target, recipe, calibration, output)
    if text:
        sys.stdout.write(text)


def _rows() -> list[dict[str, Any]]:
    """One JSON-able row per installed pass, in pipeline order."""
    from qcompiler.pipeline.registry import all_passes

    return [
        {
            "name": name,
            "phase": cls.phase.name.lower(),
            "exact": cls.exact,
            "needs": sorted(fact.value for fact in cls.needs),
            "gives": sorted(fact.value for fact in cls.gives),
            "options": {field.name: field.default for field in dataclasses.fields(cls)},
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
        }
        for name, cls in all_passes().items()
    ]

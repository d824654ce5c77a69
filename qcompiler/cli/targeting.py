"""Commands about targets: ``targets``, ``targets show``, ``probe``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qcompiler.cli.options import Json, Target
from qcompiler.cli.terminal import FAILED, out, print_json, steps

__all__ = ["probe", "show", "targets"]


def targets(context: typer.Context, json: Json = False) -> None:
    """List the built-in targets; `qcompile targets show NAME` shows one."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from qcompiler.targets.registry import host_target, load_target, target_names

    rows = [load_target(name) for name in target_names() if name != "cpu"]
    host = host_target().name
    if json:
        print_json(
            [
                {
                    "name": t.name,
                    "runtime": t.runtime,
                    "description": t.description,
                    "host": t.name == host,
                }
                for t in rows
            ]
        )
        return
    table = Table("target", "runtime", "form", "rows", "what", box=None)
    for item in rows:
        name = f"{item.name} (this host)" if item.name == host else item.name
        table.add_row(name, item.runtime, item.form.value, str(len(item.kernels)), item.description)
    out.print(table)


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Target name or file.")],
    toml: Annotated[bool, typer.Option("--toml", help="As a target file to edit.")] = False,
    json: Json = False,
) -> None:
    """Show every row of a target with its source."""
    from qcompiler.targets.registry import load_target

    target = load_target(name)
    if json or (context.parent is not None and context.parent.params.get("json")):
        from qcompiler.targets.toml import target_to_dict

        print_json(target_to_dict(target))
        return
    if toml:
        from qcompiler.targets.toml import to_toml

        sys.stdout.write(to_toml(target))
        return
    from qcompiler.targets.describe import describe

    sys.stdout.write(describe(target) + "\n")


def probe(
    target: Target = "cpu",
    save: Annotated[
        bool, typer.Option("--save", help="Keep the refitted costs for this host.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="Fewer shapes, about 15 s.")] = False,
    json: Json = False,
) -> None:
    """Check every row of a target on the runtime here, and refit its costs.

    Exit code 1 when a row does not hold.
    """
    from rich.table import Table

    from qcompiler.targets.probe import probe as probe_rows
    from qcompiler.targets.registry import load_target, refuse_foreign, save_probe

    resolved = load_target(target)
    if save:
        refuse_foreign(resolved)  # before a minute of work, not after
    with steps(json) as progress:
        report = probe_rows(resolved, quick=quick, progress=progress)
    if json:
        saved = {"saved": save_probe(report)} if save else {}
        print_json({**report.to_dict(), **saved})
    else:
        table = Table("row", "holds", "speed-up", "what", box=None)
        for row in report.rows:
            speed = "" if row.speedup is None else f"{row.speedup:.2f}x"
            table.add_row(row.id, "yes" if row.ok else "no", speed, row.why)
        out.print(table)
        if save:  # what was measured is worth reading, too, when it cannot be kept
            out.print(f"costs of this host kept in {save_probe(report)}")
    if not all(row.ok for row in report.rows):
        raise typer.Exit(FAILED)

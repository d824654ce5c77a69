"""``qcompile probe``: show what the rows of a target do on this host."""

from __future__ import annotations

from rich.table import Table

from qcompiler.cli.terminal import out, print_json, steps
from qcompiler.targets.probe import probe
from qcompiler.targets.registry import load_target, save_probe

__all__ = ["run_probe"]


def run_probe(target: str, *, save: bool, quick: bool, json: bool) -> bool:
    """Probe, print, save if asked; returns whether every row held."""
    resolved = load_target(target)
    with steps(json) as progress:
        report = probe(resolved, quick=quick, progress=progress)
    if save:
        where = save_probe(report)
    if json:
        print_json(report.to_dict())
    else:
        table = Table("row", "holds", "speed-up", "what", box=None)
        for row in report.rows:
            speed = "" if row.speedup is None else f"{row.speedup:.2f}x"
            table.add_row(row.id, "yes" if row.ok else "no", speed, row.why)
        out.print(table)
        if save:
            out.print(f"costs of this host kept in {where}")
    return all(row.ok for row in report.rows)

"""What the commands share: consoles, progress, JSON output, exit codes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from qcompiler.diagnostics import QcError

if TYPE_CHECKING:
    from qcompiler.report.model import Report

__all__ = [
    "BUG", "FAILED", "STOPPED", "USAGE", "err", "fail", "out", "print_json", "print_summaries",
    "reports_json", "steps",
]  # fmt: skip

# Exit codes: 0 done; 1 done, but a check failed; 2 the input cannot be used; 3 our own bug;
# 130 stopped by the user.
FAILED, USAGE, BUG, STOPPED = 1, 2, 3, 130

# names of nodes and files hold anything: brackets and colons in them are no markup
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


def print_json(data: Any) -> None:
    """Write ``data`` as JSON on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(data, indent=1, default=_plain) + "\n")


def reports_json(reports: Mapping[str, Report]) -> dict[str, Any]:
    """The report of the model, or of a decoder with that of its encoder inside."""
    encoder = reports.get("encoder")
    *_, report = reports.values()
    return {**report.to_dict(), **({"encoder": encoder.to_dict()} if encoder else {})}


def print_summaries(reports: Mapping[str, Report]) -> None:
    """The summary of each part, under its name where there are two."""
    from qcompiler.report.tables import summary

    for name, report in reports.items():
        if len(reports) > 1:
            out.rule(name)
        out.print(summary(report))


def fail(error: QcError) -> None:
    """Show a diagnostic on standard error."""
    item = error.diagnostic
    place = f"{item.where}: " if item.where else ""
    said = Text.assemble((f"{item.code.id} ", "bold red"), place + item.message)
    err.print(said, soft_wrap=True)
    if item.hint:
        err.print(Text(f"hint: {item.hint}", style="dim"), soft_wrap=True)


@contextlib.contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """A spinner naming the current step; nothing when quiet or standard error is no terminal."""
    if quiet or not err.is_terminal:
        yield None
        return
    with err.status("starting") as status:
        yield lambda step: status.update(step)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, pathlib.Path):
        return str(value)
    return dict(value)

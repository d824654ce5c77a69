"""What the commands share: consoles, progress, JSON output, exit codes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from qcompiler.diagnostics import QcError

__all__ = ["BUG", "FAILED", "STOPPED", "USAGE", "err", "fail", "out", "print_json", "steps"]

# Exit codes: 0 done; 1 done, but a check failed; 2 the input cannot be used; 3 our own bug;
# 130 stopped by the user.
FAILED, USAGE, BUG, STOPPED = 1, 2, 3, 130

out = Console()
err = Console(stderr=True)


def print_json(data: Any) -> None:
    """Write ``data`` as JSON on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(data, indent=1, default=_plain) + "\n")


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

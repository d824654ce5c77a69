"""``qcompile compare``: models and data in, table or JSON out."""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qcompiler.cli.terminal import out, print_json, steps
from qcompiler.verify.layers import LayerComparison, LayerRow, compare_layers

if TYPE_CHECKING:
    from qcompiler.artifact import Artifact

__all__ = ["run_compare"]

_BAD_DB, _POOR_DB = 15.0, 30.0


def run_compare(
    float_model: str,
    quantized: str,
    data: str | None,
    *,
    feeds: int,
    threads: int | None,
    json: bool,
) -> None:
    """Compare, and print the rows.

    Raises:
        QcError: A model or the data cannot be read, or they do not belong together.
    """
    from qcompiler.frontends import open_model
    from qcompiler.frontends.data import open_data
    from qcompiler.recipe import TextOptions
    from qcompiler.verify.beside import float_side

    with steps(json) as progress:
        artifact = _quantized(quantized)
        source: Any = None
        if isinstance(artifact, str):
            opened = open_model(float_model)
            model, example = opened.model, opened.example
            if data is not None:
                source, _ = open_data(data, model, float_model, TextOptions(), feeds)
        else:
            beside = float_side(artifact, float_model, data, most=feeds)
            model, example, source = beside.model, beside.example, beside.feeds
        if source is None and example is not None:
            source = [example]
        found = compare_layers(
            model,
            artifact,
            source,
            max_feeds=feeds,
            threads=threads,
            progress=progress,
        )
    if json:
        print_json(found.to_dict())
    else:
        out.print(_table(found))


def _quantized(path: str) -> Artifact | str:
    folder = pathlib.Path(path)
    if (folder / "manifest.json").is_file():
        from qcompiler.artifact import Artifact

        return Artifact.load(folder)
    return path


def _table(found: LayerComparison) -> Group:
    table = Table(box=None)
    table.add_column("node", overflow="fold")
    table.add_column("operator")
    numbers = ("SQNR dB", "cosine", "jump dB", "weight dB", "activation dB", "weight share")
    for name in numbers:  # headers on two lines leave room for names of nodes
        table.add_column(name.replace(" ", "\n"), justify="right")
    first = found.first_jump
    for row in found.rows:
        style = "bold red" if row is first else _style(row)
        share = "" if row.weight_share is None else f"{row.weight_share:.0%}"
        table.add_row(
            row.node,
            row.op,
            _number(row.sqnr_db),
            f"{row.cosine:.5f}",
            f"{row.jump:.1f}",
            _number(row.weight_sqnr_db),
            _number(row.activation_sqnr_db),
            share,
            style=style,
        )
    said = [f"{len(found.rows)} nodes on {found.feeds} feeds"]
    if found.unmatched:
        said.append(f"{found.unmatched} layers of the float model have no counterpart")
    lines = [Text("; ".join(said))]
    if first is None:
        lines.append(Text("the error jumps nowhere"))
    else:
        side = ""
        if first.weight_share is not None:
            side = f", {first.weight_share:.0%} of it from its weight"
        lines.append(
            Text(
                f"the error first jumps at {first.node} ({first.op}): by {first.jump:.1f} dB to "
                f"{_number(first.sqnr_db)} dB{side}"
            )
        )
    return Group(table, *lines)


def _style(row: LayerRow) -> str | None:
    if row.sqnr_db < _BAD_DB:
        return "red"
    return "yellow" if row.sqnr_db < _POOR_DB else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if math.isfinite(value) else ("equal" if value > 0 else "lost")

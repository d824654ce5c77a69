"""``qcompile compare``: models and data in, table or JSON out."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qcompiler.cli.terminal import out, print_json, steps
from qcompiler.frontends.opened import ENCODER
from qcompiler.verify.layers import LayerComparison, LayerRow, compare_layers

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompiler.artifact import Artifact
    from qcompiler.frontends.opened import Opened
    from qcompiler.pipeline.contract import Feed

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
    from qcompiler.artifact import Artifact
    from qcompiler.frontends import open_model

    with steps(json) as progress:
        given = _quantized(quantized)
        opened = open_model(float_model)
        found: dict[str, LayerComparison] = {}
        for name, part in (given.parts if isinstance(given, Artifact) else {"": given}).items():
            model, source = _float_side(opened, part, data, feeds)
            found[name] = compare_layers(
                model, part, source, max_feeds=feeds, threads=threads, progress=progress
            )
    if json:
        encoder = {name: item.to_dict() for name, item in found.items() if name == ENCODER}
        *_, last = found.values()
        print_json({**last.to_dict(), **encoder})
        return
    for name, item in found.items():
        if len(found) > 1:
            out.rule(name)
        out.print(_table(item))


def _quantized(path: str) -> Artifact | str:
    folder = pathlib.Path(path)
    if (folder / "manifest.json").is_file():
        from qcompiler.artifact import Artifact

        return Artifact.load(folder)
    return path


def _float_side(
    opened: Opened, quantized: Artifact | str, data: str | None, most: int
) -> tuple[ir.Model, Iterable[Feed] | None]:
    """The float model beside ``quantized``, and what both run on; None generates a feed."""
    from qcompiler.frontends.data import open_data
    from qcompiler.recipe import TextOptions
    from qcompiler.verify.beside import float_side

    if isinstance(quantized, str):
        model, example = opened.model, opened.example
        source = None
        if data is not None:
            source, _ = open_data(data, model, opened.source, TextOptions(), most)
    else:
        beside = float_side(quantized, opened, data, most=most)
        model, example, source = beside.model, beside.example, beside.feeds
    if source is None and example is not None:
        return model, [example]
    return model, source


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

"""Commands that hold an artifact against another model: ``verify``, ``compare``, ``bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from qcompiler.cli.options import Json, Out, Threads, load
from qcompiler.cli.terminal import FAILED, out, print_json, print_summaries, reports_json, steps

__all__ = ["bench", "compare", "verify"]


def verify(
    artifact: Out,
    against: Annotated[str, typer.Option(help="The float model.")],
    data: Annotated[
        str | None, typer.Option(help="Feeds as for --calibration; default: generated.")
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run an artifact again beside its float model: outputs, kernels, speed. Exit 1 on failure."""
    from qcompiler.frontends import open_model
    from qcompiler.verify.again import verify_artifact

    with steps(json):
        parts, opened = load(artifact).parts, open_model(against)
        reports = {
            name: verify_artifact(part, opened, data, threads=threads)
            for name, part in parts.items()
        }
    if json:
        print_json(reports_json(reports))
    else:
        print_summaries(reports)
    if any(report.errors for report in reports.values()):
        raise typer.Exit(FAILED)


def compare(
    model: Annotated[str, typer.Argument(metavar="FLOAT", help="The float model.")],
    quantized: Annotated[
        str, typer.Argument(metavar="QUANT", help="Artifact folder, or any quantized ONNX file.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Feeds as for --calibration; default: generated.")
    ] = None,
    feeds: Annotated[int, typer.Option(help="At most this many feeds.", min=1)] = 4,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Hold QUANT against FLOAT node by node: error, where it jumps, weight or activation."""
    from qcompiler.cli.comparing import run_compare

    run_compare(model, quantized, data, feeds=feeds, threads=threads, json=json)


def bench(
    artifact: Out,
    against: Annotated[str, typer.Option(help="ONNX file or artifact to compare with.")],
    data: Annotated[str | None, typer.Option(help="Feeds; the first is timed.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 9,
    seconds: Annotated[float, typer.Option(help="Seconds a round and model.", min=0.01)] = 0.3,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Time an artifact against another model: a process each, interleaved, ratio with spread."""
    from qcompiler.bench.command import bench_models

    rows = bench_models(artifact, against, data, rounds=rounds, seconds=seconds, threads=threads)
    if json:
        print_json([row.to_dict() for row in rows])
        return
    from rich.table import Table

    table = Table("model", "median ms", "speed-up", "10-90 %", "runs", box=None)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.median_ms:.3f}",
            f"{row.ratio:.2f}x",
            f"{row.low:.2f}-{row.high:.2f}",
            str(row.runs),
        )
    out.print(table)

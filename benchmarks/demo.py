"""The README's first command: compile a real model, print speed-up, accuracy and verdicts.

``python benchmarks/demo.py [MODEL] [RECIPE]``; the model is one of ``REAL_MODELS``.
"""

from __future__ import annotations

import pathlib
import sys

from rich.console import Console
from rich.table import Table

from qcompiler import qcompile
from qcompiler.bench import Candidate, compare
from qcompiler.cli.terminal import steps
from qcompiler.report.tables import summary
from qcompiler.runtime.session import open_session, run
from qcompiler_models import load_model


def main(name: str = "minilm", recipe: str = "static-int8") -> None:
    """Compile one real model for this host, time it, score it on data it has not seen."""
    console = Console()
    model = load_model(name)
    console.print(f"[bold]{model.name}[/]: {model.description}")
    float_path = model.onnx()
    with steps(quiet=False) as progress:
        artifact = qcompile(
            float_path,
            target="cpu",
            recipe=recipe,
            calibration=model.calibration(),
            output=pathlib.Path("out") / name,
            progress=progress,
        )
    console.print(summary(artifact.report))

    table = Table("inputs", "float ms", "artifact ms", "speed-up", "10-90 %", title="latency")
    for label, feed in model.bench_feeds().items():
        contestants = [
            Candidate("float", float_path),
            Candidate("artifact", pathlib.Path("out") / name),
        ]
        base, ours = compare(contestants, feed, rounds=5)
        table.add_row(
            label,
            f"{base.median_ms:.2f}",
            f"{ours.median_ms:.2f}",
            f"{ours.ratio:.2f}x",
            f"{ours.low:.2f}-{ours.high:.2f}",
        )
    console.print(table)

    reference = open_session(float_path)
    scores = model.score(artifact.run, lambda feed: run(reference, feed))
    table = Table("accuracy on unseen data", "value")
    for key, value in scores.items():
        table.add_row(key, f"{value:.4f}")
    console.print(table)
    console.print(f"`qcompile explain out/{name}` tells every node's verdict")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Commands that make something of an artifact: ``report``, ``export``, ``generate``."""

from __future__ import annotations

import pathlib
import sys
from typing import Annotated

import typer

from qcompiler.cli.options import Json, Out, load
from qcompiler.cli.terminal import err, out, print_json, steps
from qcompiler.diagnostics import Code, QcError

__all__ = ["export", "generate", "report"]


def report(
    artifact: Out,
    output: Annotated[
        pathlib.Path | None,
        typer.Option("--output", "-o", help="File to write; default: report.html in the folder."),
    ] = None,
) -> None:
    """Write the report of an artifact as one HTML file, to open in a browser."""
    from qcompiler.report.page import PAGE, write_page

    loaded = load(artifact)
    page = output or artifact / PAGE
    inside = page.resolve().is_relative_to(artifact.resolve())
    if inside and page.name != PAGE and page.exists():
        raise QcError(
            Code.USAGE,
            "--output",
            f"{page} is a file of the artifact, which the page would overwrite",
            f"leave --output out to write {PAGE} there, or name another file",
        )
    path = write_page(loaded.report, loaded.plan, page)
    err.print(f"written to {path}")


def export(
    artifact: Out,
    against: Annotated[str, typer.Option(help="Folder of the float model it was compiled from.")],
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="Folder to write.")],
    format: Annotated[str, typer.Option(help="gptq or awq.")] = "gptq",
    json: Json = False,
) -> None:
    """Write the integers of a compiled language model as a GPTQ or AWQ checkpoint for torch."""
    from qcompiler.export import export_checkpoint

    with steps(json):
        done = export_checkpoint(load(artifact), against, output, format)  # type: ignore[arg-type]
    if json:
        said = [item.to_dict() for item in done.diagnostics]
        print_json({"output": str(done.folder), "layers": done.layers, "diagnostics": said})
        return
    for item in done.diagnostics:
        out.print(f"{item.code.id} {item.where}: {item.message}", highlight=False)
    out.print(f"{done.layers} layers written to {done.folder}")


def generate(
    artifact: Out,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from; of speech its special tokens.")
    ] = None,
    audio: Annotated[
        pathlib.Path | None, typer.Option(help="Sound file to write down: wav, mp3 or flac.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.", min=1)] = 128,
) -> None:
    """Go on from a prompt, or write down speech, by ONNX Runtime GenAI."""
    from qcompiler.runtime.generate import generate as pieces

    for piece in pieces(artifact, prompt, audio=audio, new_tokens=max_new_tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")

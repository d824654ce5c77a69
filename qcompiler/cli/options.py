"""What several commands take: types of arguments and options."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qcompiler.artifact import Artifact

__all__ = [
    "Calibration", "Form", "Json", "Model", "Out", "RecipeOption", "Target", "Threads", "load",
]  # fmt: skip

Model = Annotated[str, typer.Argument(help="ONNX file, transformers folder, .gguf or .pt2 file.")]
Out = Annotated[pathlib.Path, typer.Argument(help="Artifact folder.")]
Target = Annotated[str, typer.Option(help="Target name or file; see `qcompile targets`.")]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="auto, static-int8, dynamic-int8, weight-int8, weight-int4, static-fp8, static-a16w8, "
        "float; of language models w4-rtn, w4-k-quant, w4-hqq, w4-gptq, w4-awq, w4-teq, "
        "w4-distilled, w4-autoround (-light, -best); or a TOML/YAML/JSON file."
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help=".npz or .npy file of inputs, or a folder of them; for a model with a tokenizer "
        "also text: .txt, .md, .json or .jsonl; for a model of tokens also .npy [n, length]."
    ),
]
Form = Annotated[str | None, typer.Option(help="ort or qdq; default: the target's.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
Threads = Annotated[int | None, typer.Option(help="Intra-op threads.", min=1)]


def load(folder: pathlib.Path) -> Artifact:
    """The artifact in a folder."""
    from qcompiler.artifact import Artifact

    return Artifact.load(folder)

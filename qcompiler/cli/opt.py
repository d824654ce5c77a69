"""``qcompile opt``: run a pipeline on a model and show the text."""

from __future__ import annotations

import contextlib
import pathlib

import onnx_ir as ir

from qcompiler.artifact import INLINE_LIMIT, model_bytes
from qcompiler.cli.terminal import err
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.ir.inline import inlined
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.registry import all_passes, parse_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.targets.registry import load_target

__all__ = ["run_opt"]

_SHARING = "share-transposed"


def run_opt(
    model: str,
    passes: str,
    target: str,
    recipe: str | None,
    calibration: str | None,
    output: pathlib.Path | None,
) -> str:
    """The model's text after the pipeline; with ``output`` the model is written there instead.

    What the passes have to tell goes to standard error. A constant that is another one transposed
    is one constant of the file.
    """
    opened = open_model(model)
    resolved = load_target(target)
    feeds = None
    if calibration is not None:
        from qcompiler.calibration.feeds import open_feeds
        from qcompiler.runtime.inputs import input_specs

        feeds = open_feeds(calibration, input_specs(opened.model))
    state = State(
        resolved,
        Recipe.of(recipe),
        resolved.form,
        feeds=feeds,
        sample=feeds.first if feeds is not None else opened.example,
    )
    pipeline = list(parse_pipeline(passes))
    if output is not None and all(item.name != _SHARING for item in pipeline):
        pipeline.append(all_passes()[_SHARING]())
    run_pipeline(pipeline, opened.model, state)
    for item in state.diagnostics:
        err.print(str(item), soft_wrap=True)
    if output is None:
        return model_text(opened.model)
    _save(opened.model, output)
    return ""


def _save(model: ir.Model, output: pathlib.Path) -> None:
    """Write an ONNX file under another name, then rename it: nothing half-written stays."""
    if output.exists() and not output.is_file():  # a device would give way to the model
        what = "folder" if output.is_dir() else "device"
        raise QcError(
            Code.NOT_WRITABLE, str(output), f"is a {what}, wanted a file", "choose another name"
        )
    if (size := model_bytes(model)) > INLINE_LIMIT:
        raise QcError(
            Code.NOT_WRITABLE,
            str(output),
            f"{size} bytes of constants do not fit into one ONNX file",
            "qcompile compile --recipe float -o FOLDER writes them beside it",
        )
    partial = output.with_name(f".{output.name}.partial")
    try:
        ir.save(inlined(model), partial)
        partial.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise QcError(
            Code.NOT_WRITABLE,
            str(output),
            f"cannot be written: {error.strerror or error}",
            "give the path of a file in a folder that exists",
        ) from error

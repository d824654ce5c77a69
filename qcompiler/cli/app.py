"""The command line: its commands in the order of ``--help``, and what becomes of errors."""

from __future__ import annotations

import importlib.metadata
import sys
import traceback
from typing import Annotated, Any

import typer

from qcompiler.cli import compiling, judging, pipelines, targeting, using
from qcompiler.cli.terminal import BUG, FAILED, STOPPED, USAGE, err, fail, out, print_json
from qcompiler.diagnostics import Code, QcError

__all__ = ["app", "run"]

app = typer.Typer(
    name="qcompile",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Compile a model into a quantized, explained and proven ONNX artifact.",
    epilog="Exit codes: 0 done; 1 done, but a check failed; 2 the input cannot be used; "
    "3 a bug of ours; 130 stopped.",
)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(importlib.metadata.version("qcompiler-onnx"), highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command("compile")(compiling.compile_)
app.command()(compiling.explain)
app.command()(judging.verify)
app.command()(using.report)
app.command()(using.export)
app.command()(using.generate)
app.command()(judging.compare)
app.command()(judging.bench)
app.command()(targeting.probe)
app.command()(pipelines.passes)
app.command()(pipelines.opt)

_targets = typer.Typer(no_args_is_help=False, help="List targets, or show one.")
_targets.callback()(targeting.targets)
_targets.command()(targeting.show)
app.add_typer(_targets, name="targets", invoke_without_command=True)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line.

    A :class:`QcError` becomes one message and exit code 1 or 2, and with ``--json`` an object
    ``{"error": ...}`` too; anything else that is raised is our bug: its traceback and exit code 3.
    """
    command = typer.main.get_command(app)
    try:
        command(args=arguments, prog_name="qcompile")
    except QcError as error:
        if "--json" in (sys.argv[1:] if arguments is None else arguments):
            print_json({"error": error.diagnostic.to_dict()})
        fail(error)
        raise SystemExit(_exit_code(error)) from error
    except KeyboardInterrupt:
        err.print("stopped")
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:  # the reader, as `head`, has seen enough
        sys.stdout = None
        raise SystemExit(0) from None
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        fail(QcError(Code.INTERNAL, "qcompile", said, "please report it with the lines above"))
        raise SystemExit(BUG) from error


def _exit_code(error: QcError) -> int:
    checks: tuple[Any, ...] = (Code.WRONG_RESULT, Code.KERNEL_NOT_SEEN)
    return FAILED if error.code in checks else USAGE

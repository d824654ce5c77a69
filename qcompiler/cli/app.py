"""The command line: its commands in the order of ``--help``, and what becomes of errors."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from typing import Annotated, Any

import typer

import qcompiler
from qcompiler.cli import compiling, judging, pipelines, targeting, using
from qcompiler.cli.standard_streams import TERMINATED, standard_streams
from qcompiler.cli.terminal import BUG, FAILED, STOPPED, USAGE, err, fail, out, print_json
from qcompiler.diagnostics import Code, QcError

__all__ = ["app", "run"]

_FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    name="qcompile",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Compile a model into a quantized, explained and proven ONNX artifact.",
    epilog="Exit codes: 0 done; 1 done, but a check failed; 2 the input cannot be used; "
    "3 a bug of ours; 130 or 143 stopped.",
)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(qcompiler.__version__, highlight=False)
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
    """Run the command line and leave by ``SystemExit``.

    A :class:`QcError` becomes one message and exit code 1 or 2, and with ``--json`` an object
    ``{"error": ...}`` too, as do words that the command line does not have; anything else that is
    raised is our bug: its traceback and exit code 3.
    """
    asked = sys.argv[1:] if arguments is None else arguments
    with standard_streams():
        try:
            code = _call(asked)
            sys.stdout.flush()
        except QcError as error:
            code = _refused(error, asked)
        except OSError as error:
            code = _refused(_no_room(error), asked) if error.errno in _FULL else _bug(error)
        except Exception as error:
            code = _bug(error)
    raise SystemExit(code)


def _call(arguments: list[str]) -> int:
    """The exit code of a command that came to its end, was stopped, or is none."""
    try:
        typer.main.get_command(app)(args=arguments, prog_name="qcompile")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code in (STOPPED, TERMINATED):
            err.print("stopped")
        misspelled = getattr(end.__context__, "format_message", None)  # typer has said it by now
        if misspelled is not None and "--json" in arguments:
            hint = "see `qcompile COMMAND --help`"
            print_json(_as_object(QcError(Code.USAGE, "qcompile", misspelled(), hint)))
        return code
    return 0


def _refused(error: QcError, arguments: list[str]) -> int:
    if "--json" in arguments:
        with contextlib.suppress(OSError):  # of the disk that is full
            print_json(_as_object(error))
    fail(error)
    checks = (Code.WRONG_RESULT, Code.KERNEL_NOT_SEEN)
    return FAILED if error.code in checks else USAGE


def _as_object(error: QcError) -> dict[str, Any]:
    return {"error": error.diagnostic.to_dict()}


def _no_room(error: OSError) -> QcError:
    return QcError(
        Code.NOT_WRITABLE,
        str(error.filename or "standard output"),
        f"cannot be written: {error.strerror}",
        "free some space, or let TMPDIR name another folder for temporary files",
    )


def _bug(error: Exception) -> int:
    traceback.print_exception(error)
    said = f"{type(error).__name__}: {error}"
    fail(QcError(Code.INTERNAL, "qcompile", said, "please report it with the lines above"))
    return BUG

"""The commands."""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcompiler.cli.terminal import (
    BUG,
    FAILED,
    STOPPED,
    USAGE,
    err,
    fail,
    out,
    print_json,
    steps,
)
from qcompiler.diagnostics import Code, QcError

if TYPE_CHECKING:
    from qcompiler.artifact import Artifact

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
targets_app = typer.Typer(no_args_is_help=False, help="List targets, or show one.")
app.add_typer(targets_app, name="targets", invoke_without_command=True)

Model = Annotated[str, typer.Argument(help="ONNX file, transformers folder, .gguf or .pt2 file.")]
Out = Annotated[pathlib.Path, typer.Argument(help="Artifact folder.")]
Target = Annotated[str, typer.Option(help="Target name or file; see `qcompile targets`.")]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="auto, static-int8, dynamic-int8, weight-int8, weight-int4, float, or a "
        "TOML/YAML/JSON file."
    ),
]
Calibration = Annotated[
    str | None, typer.Option(help=".npz file of inputs, or a folder of such files.")
]
Form = Annotated[str | None, typer.Option(help="ort or qdq; default: the target's.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Threads = Annotated[int | None, typer.Option(help="Intra-op threads.", min=1)]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Return nodes to float until the outputs' cosine with float's has dropped by no more.",
        min=0.0,
    ),
]
KeepFloat = Annotated[
    int | None, typer.Option(help="Return the N most damaging nodes to float.", min=0)
]


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


@app.command("compile")
def compile_(
    model: Model,
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="Folder to write.")],
    target: Target = "cpu",
    recipe: RecipeOption = None,
    calibration: Calibration = None,
    form: Form = None,
    plan: Annotated[
        pathlib.Path | None, typer.Option(help="A plan.json to follow instead of deciding.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail on diagnostics of level error.")] = False,
    threads: Threads = None,
    dump: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for the graph's text after each pass.")
    ] = None,
    max_drop: MaxDrop = None,
    keep_float: KeepFloat = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure each node's damage to the output.")
    ] = False,
    work: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for rounded weights: a compile that was killed goes on there."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile MODEL and write an artifact folder.

    Example: qcompile compile model.onnx --recipe static-int8 --calibration data.npz -o out
    """
    from qcompiler.driver import qcompile
    from qcompiler.recipe import Recipe
    from qcompiler.report.tables import summary

    asked = {"max_drop": max_drop, "keep_float": keep_float, "sensitivity": sensitivity or None}
    changes = {key: value for key, value in asked.items() if value is not None}
    with steps(quiet or json) as progress:
        artifact = qcompile(
            model,
            target=target,
            recipe=Recipe.of(recipe).changed(**changes),
            calibration=calibration,
            form=form,
            output=output,
            plan=plan,
            strict=strict,
            threads=threads,
            dump=dump,
            progress=progress,
            work=work,
        )
    if json:
        print_json({"output": str(output), **artifact.report.to_dict()})
    elif not quiet:
        out.print(summary(artifact.report))
        out.print(f"written to {output}")


@app.command()
def explain(
    source: Annotated[str, typer.Argument(help="Artifact folder, or a model to plan.")],
    target: Target = "cpu",
    recipe: RecipeOption = None,
    calibration: Calibration = None,
    removed: Annotated[
        bool, typer.Option(help="Also the nodes that exact rewrites folded away.")
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Rank nodes by their damage to the output.")
    ] = False,
    json: Json = False,
) -> None:
    """Tell of each node how it is quantized, or the coded reason why not."""
    from qcompiler.report.tables import plan_table, sensitivity_table, summary

    folder = pathlib.Path(source)
    if (folder / "manifest.json").is_file():
        artifact = _load(folder)
    else:
        from qcompiler.driver import qcompile
        from qcompiler.recipe import Recipe

        plain = Recipe.of(recipe).changed(
            verify={"enabled": False}, **({"sensitivity": True} if sensitivity else {})
        )
        with steps(json) as progress:
            artifact = qcompile(source, target, plain, calibration, progress=progress)
    if json:
        print_json({"plan": artifact.plan.to_dict(), "report": artifact.report.to_dict()})
        return
    if sensitivity:
        out.print(sensitivity_table(artifact.report, artifact.plan))
        return
    out.print(plan_table(artifact.plan, removed=removed))
    out.print()
    out.print(summary(artifact.report))


@app.command()
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
    from qcompiler.verify.again import verify_artifact

    with steps(json):
        report = verify_artifact(_load(artifact), against, data, threads=threads)
    if json:
        print_json(report.to_dict())
    else:
        from qcompiler.report.tables import summary

        out.print(summary(report))
    if report.errors:
        raise typer.Exit(FAILED)


@app.command()
def report(
    artifact: Out,
    output: Annotated[
        pathlib.Path | None,
        typer.Option("--output", "-o", help="File to write; default: report.html in the folder."),
    ] = None,
) -> None:
    """Write the report of an artifact as one HTML file, to open in a browser."""
    from qcompiler.report.page import PAGE, write_page

    loaded = _load(artifact)
    path = write_page(loaded.report, loaded.plan, output or artifact / PAGE)
    err.print(f"written to {path}")


@app.command()
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
        done = export_checkpoint(_load(artifact), against, output, format)  # type: ignore[arg-type]
    if json:
        said = [item.to_dict() for item in done.diagnostics]
        print_json({"output": str(done.folder), "layers": done.layers, "diagnostics": said})
        return
    for item in done.diagnostics:
        out.print(f"{item.code.id} {item.where}: {item.message}", highlight=False)
    out.print(f"{done.layers} layers written to {done.folder}")


@app.command()
def generate(
    artifact: Out,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.", min=1)] = 128,
) -> None:
    """Go on from a prompt with a compiled language model, by ONNX Runtime GenAI."""
    from qcompiler.runtime.generate import generate as pieces

    for piece in pieces(artifact, prompt, new_tokens=max_new_tokens):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
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


@app.command()
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


@targets_app.callback()
def targets(context: typer.Context, json: Json = False) -> None:
    """List the built-in targets; `qcompile targets show NAME` shows one."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from qcompiler.targets.registry import host_target, load_target, target_names

    rows = [load_target(name) for name in target_names() if name != "cpu"]
    host = host_target().name
    if json:
        print_json(
            [
                {
                    "name": t.name,
                    "runtime": t.runtime,
                    "description": t.description,
                    "host": t.name == host,
                }
                for t in rows
            ]
        )
        return
    table = Table("target", "runtime", "form", "rows", "what", box=None)
    for item in rows:
        name = f"{item.name} (this host)" if item.name == host else item.name
        table.add_row(name, item.runtime, item.form.value, str(len(item.kernels)), item.description)
    out.print(table)


@targets_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Target name or file.")],
    toml: Annotated[bool, typer.Option("--toml", help="As a target file to edit.")] = False,
) -> None:
    """Show every row of a target with its source."""
    from qcompiler.targets.registry import load_target

    target = load_target(name)
    if toml:
        from qcompiler.targets.toml import to_toml

        sys.stdout.write(to_toml(target))
        return
    from qcompiler.targets.describe import describe

    sys.stdout.write(describe(target) + "\n")


@app.command()
def probe(
    target: Target = "cpu",
    save: Annotated[
        bool, typer.Option("--save", help="Keep the refitted costs for this host.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="Fewer shapes, about 15 s.")] = False,
    json: Json = False,
) -> None:
    """Check every row of a target on the runtime here, and refit its costs.

    Exit code 1 when a row does not hold.
    """
    from qcompiler.cli.probing import run_probe

    if not run_probe(target, save=save, quick=quick, json=json):
        raise typer.Exit(FAILED)


@app.command()
def passes(json: Json = False) -> None:
    """List the installed passes in pipeline order, with what they need and give."""
    from rich.table import Table

    from qcompiler.cli.listing import pass_rows

    rows = pass_rows()
    if json:
        print_json(rows)
        return
    table = Table("pass", "phase", "exact", "needs", "gives", "options", "what", box=None)
    for row in rows:
        table.add_row(
            row["name"],
            row["phase"],
            "yes" if row["exact"] else "no",
            ", ".join(row["needs"]),
            ", ".join(row["gives"]),
            " ".join(f"{k}={v}" for k, v in row["options"].items()),
            row["summary"],
        )
    out.print(table)


@app.command()
def opt(
    model: Model,
    passes: Annotated[str, typer.Option(help="Pipeline text: name,name{option=value}.")],
    target: Target = "cpu",
    recipe: RecipeOption = None,
    calibration: Calibration = None,
    output: Annotated[
        pathlib.Path | None, typer.Option("--output", "-o", help="Write an ONNX file instead.")
    ] = None,
) -> None:
    """Run a pipeline on MODEL and print the graph's text (before and after: `--passes ''`)."""
    from qcompiler.cli.opt import run_opt

    text = run_opt(model, passes, target, recipe, calibration, output)
    if text:
        sys.stdout.write(text)


def _load(folder: pathlib.Path) -> Artifact:
    from qcompiler.artifact import Artifact

    return Artifact.load(folder)


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

"""The commands: what they print, their JSON, and their exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompiler
from qcompiler.pipeline.registry import all_passes
from qcompiler.recipe import RECIPES

Cli = Callable[..., Any]
FORCED = "base = 'static-int8'\nforce = true\n"


@pytest.fixture
def forced(tmp_path: pathlib.Path) -> pathlib.Path:
    """A recipe that quantizes the tiny model, which is too small for it to pay."""
    path = tmp_path / "forced.toml"
    path.write_text(FORCED)
    return path


@pytest.fixture
def artifact(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, forced: pathlib.Path, tmp_path: pathlib.Path
) -> pathlib.Path:
    """The tiny model compiled."""
    folder = tmp_path / "artifact"
    said = cli("compile", mlp, "--recipe", forced, "--calibration", data, "-o", folder, "-q")
    assert said.code == 0, said.err
    return folder


def test_compile_writes_the_folder_and_sums_up(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, forced: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "out"
    said = cli("compile", mlp, "--recipe", forced, "--calibration", data, "-o", folder)
    assert said.code == 0
    assert "quantized" in said.out
    files = {"manifest.json", "model.onnx", "plan.json", "report.html", "report.json"}
    assert {path.name for path in folder.iterdir()} == files
    onnx.checker.check_model(onnx.load(folder / "model.onnx"))


def test_report_writes_the_page_again_and_elsewhere(
    cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "out"
    assert cli("compile", mlp, "--recipe", "float", "-o", folder, "--quiet").code == 0
    first = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    said = cli("report", folder)
    assert (said.code, said.out) == (0, "")
    assert (folder / "report.html").read_bytes() == first
    assert cli("report", folder, "-o", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").read_bytes() == first
    assert cli("verify", folder, "--against", mlp).code == 0  # the manifest does not pin the page


def test_report_does_not_write_over_the_artifact(
    cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "out"
    assert cli("compile", mlp, "--recipe", "float", "-o", folder, "--quiet").code == 0
    for name in ("model.onnx", "manifest.json"):
        before = (folder / name).read_bytes()
        said = cli("report", folder, "-o", folder / name)
        assert said.code == 2
        assert "is a file of the artifact" in said.err
        assert (folder / name).read_bytes() == before
    said = cli("report", folder / "model.onnx")
    assert said.code == 2
    assert "is a file, not a folder" in said.err


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    said = cli("--version")
    assert (said.code, said.out) == (0, f"{importlib.metadata.version('qcompiler-onnx')}\n")
    assert said.out.strip() == qcompiler.__version__


def test_compile_quiet_says_nothing(cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    said = cli("compile", mlp, "--recipe", "float", "-o", tmp_path / "out", "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_compile_json_is_json_and_nothing_else(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, forced: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    said = cli(
        "compile", mlp, "--recipe", forced, "--calibration", data, "-o", tmp_path / "o", "--json"
    )
    assert said.json["coverage"]["planned"]["quantized"] == 3
    assert said.json["recipe"] == "static-int8+"


def test_compile_from_a_shell(mlp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qcompiler", "compile", str(mlp), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.onnx").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "qcompiler", "compile", "absent.onnx", "-o", str(tmp_path / "no")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "QC701" in done.stderr
    assert "Traceback" not in done.stderr


def test_explain_tells_of_an_artifact(cli: Cli, artifact: pathlib.Path) -> None:
    said = cli("explain", artifact)
    assert said.code == 0
    assert "matmul_0_node" in said.out
    assert "QC" in said.out


def test_explain_refuses_options_that_an_artifact_does_not_read(
    cli: Cli, artifact: pathlib.Path
) -> None:
    said = cli("explain", artifact, "--recipe", "weight-int4", "--target", "cpu-vnni")
    assert said.code == 2
    assert "QC411" in said.err
    assert "--target, --recipe" in said.err


def test_explain_plans_a_model_without_compiling(cli: Cli, mlp: pathlib.Path) -> None:
    said = cli("explain", mlp, "--json")
    assert said.code == 0
    assert {"quantized", "float"} & {item["verdict"] for item in said.json["plan"]["nodes"]}
    assert [path.name for path in mlp.parent.glob("*")] == ["mlp.onnx"]


def test_verify_runs_it_beside_the_float_model(
    cli: Cli, artifact: pathlib.Path, mlp: pathlib.Path, data: pathlib.Path
) -> None:
    said = cli("verify", artifact, "--against", mlp, "--data", data, "--json")
    assert said.code == 0, said.err
    assert all(item["cosine"] > 0.99 for item in said.json["fidelity"])
    assert said.json["kernels"]["planned"] == said.json["kernels"]["seen"] == 3


def test_verify_fails_on_another_model(cli: Cli, artifact: pathlib.Path, mlp: pathlib.Path) -> None:
    proto = onnx.load(mlp)
    rng = np.random.default_rng(9)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        other = rng.standard_normal(array.shape).astype(array.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(other, tensor.name))
    other_path = mlp.with_name("other.onnx")
    onnx.save(proto, other_path)
    assert cli("verify", artifact, "--against", other_path).code == 1


def test_bench_compares_two_models(cli: Cli, artifact: pathlib.Path, mlp: pathlib.Path) -> None:
    said = cli("bench", artifact, "--against", mlp, "--rounds", 2, "--seconds", 0.02, "--json")
    assert said.code == 0, said.err
    first, second = said.json
    assert first["ratio"] == 1.0
    assert second["median_ms"] > 0
    assert second["low"] <= second["ratio"] <= second["high"]
    assert len(second["round_ms"]) == 2


def test_bench_times_a_model_with_text(cli: Cli, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N] x, string[N] names) => (float[N] y, string[N] told) {
        y = Relu(x)
        told = Identity(names)
    }"""
    onnx.save(onnx.parser.parse_model(text), path)
    said = cli("bench", path, "--against", path, "--rounds", 1, "--seconds", 0.01, "--json")
    assert said.code == 0, said.err
    assert said.json[1]["median_ms"] > 0


def test_targets_lists_and_shows(cli: Cli) -> None:
    rows = cli("targets", "--json").json
    assert {"cpu-amx", "cpu-vnni", "tensorrt", "qnn-htp"} <= {row["name"] for row in rows}
    said = cli("targets", "show", "cpu-amx")
    assert said.code == 0
    assert "matmul-static" in said.out


def test_a_shown_target_file_compiles(cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for words in (["show", "cpu-amx", "--json"], ["--json", "show", "cpu-amx"]):
        assert cli("targets", *words).json["name"] == "cpu-amx"
    said = cli("targets", "show", "cpu-vnni", "--toml")
    path = tmp_path / "mine.toml"
    path.write_text(said.out)
    said = cli("compile", mlp, "--target", path, "-o", tmp_path / "out", "-q")
    assert said.code == 0, said.err


def test_passes_lists_them_in_order(cli: Cli) -> None:
    names = [row["name"] for row in cli("passes", "--json").json]
    assert names.index("place-precision") < names.index("insert-qdq") < names.index("to-ort")


def test_names_of_passes_are_whole_in_a_narrow_terminal() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "qcompiler", "passes"],
        env={**os.environ, "COLUMNS": "60"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = set(said.stdout.split())
    assert words >= set(all_passes())


def test_opt_prints_the_graph_before_and_after(cli: Cli, mlp: pathlib.Path) -> None:
    before = cli("opt", mlp, "--passes", "")
    after = cli("opt", mlp, "--passes", "canonicalize-linear")
    assert "Gemm" in before.out
    assert "Gemm" not in after.out


def test_opt_writes_a_file(cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    said = cli("opt", mlp, "--passes", "remove-dead", "-o", tmp_path / "opt.onnx")
    assert (said.code, said.out) == (0, "")
    onnx.checker.check_model(onnx.load(tmp_path / "opt.onnx"))


def test_opt_writes_a_tied_table_once_and_tells_what_passes_say(
    cli: Cli, tmp_path: pathlib.Path
) -> None:
    table = np.random.default_rng(0).normal(size=(1024, 64)).astype(np.float32)
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[1,S] ids) => (float[S,1024] y) <float[1024,64] t = {0}> {
            e = Gather(t, ids)
            z = Constant <value_ints = [0]> ()
            h = Squeeze(e, z)
            y = Gemm <transB = 1> (h, t)
        }"""
    )
    model.graph.initializers["t"].const_value = ir.tensor(table, name="t")
    ir.save(model, tmp_path / "tied.onnx")
    for recipe in ("dynamic-int8", "float"):
        options = ("--passes", "canonicalize-linear", "--recipe", recipe)
        said = cli("opt", tmp_path / "tied.onnx", *options, "-o", tmp_path / "out.onnx")
        assert (said.code, said.out) == (0, ""), said.err
        assert (tmp_path / "out.onnx").stat().st_size < 1.1 * table.nbytes
        assert ("QC117" in said.err) == (recipe == "float")


def test_opt_refuses_what_no_single_file_holds(
    cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.cli.opt.INLINE_LIMIT", 100)
    said = cli("opt", mlp, "--passes", "", "-o", tmp_path / "opt.onnx")
    assert said.code == 2
    assert "do not fit into one ONNX file" in said.err
    assert not list(tmp_path.glob("*opt*"))


def test_a_plan_goes_out_and_comes_back(
    cli: Cli,
    artifact: pathlib.Path,
    mlp: pathlib.Path,
    data: pathlib.Path,
    forced: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    plan, folder = artifact / "plan.json", tmp_path / "again"
    options = ("--recipe", forced, "--calibration", data, "--plan", plan)
    said = cli("compile", mlp, *options, "-o", folder, "-q")
    assert said.code == 0, said.err
    again = json.loads((folder / "plan.json").read_text())
    assert again["nodes"] == json.loads(plan.read_text())["nodes"]


def test_a_pass_typo_names_the_nearest(cli: Cli, mlp: pathlib.Path) -> None:
    said = cli("opt", mlp, "--passes", "remove-ded")
    assert said.code == 2
    assert "remove-dead" in said.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["explain", "absent"], "QC70"),
        (["compile", "MODEL", "-o", "OUT", "--recipe", "statik"], "QC402"),
        (["compile", "MODEL", "-o", "OUT", "--target", "cpu-amxx"], "QC401"),
        (["compile", "MODEL", "-o", "OUT", "--recipe", "static-int8"], "QC410"),
        (["compile", "MODEL", "-o", "MODEL", "--recipe", "float"], "QC706"),
        (["verify", "absent", "--against", "MODEL"], "QC709"),
        (["bench", "absent", "--against", "MODEL"], "QC701"),
        (["targets", "show", "cpu-amxx"], "QC401"),
    ],
)
def test_unusable_input_exits_2_with_its_code(
    cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path, arguments: list[str], code: str
) -> None:
    places = {"MODEL": str(mlp), "OUT": str(tmp_path / "out")}
    said = cli(*(places.get(item, item) for item in arguments))
    assert said.code == 2
    assert code in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_a_changed_artifact_is_noticed(cli: Cli, artifact: pathlib.Path, mlp: pathlib.Path) -> None:
    with (artifact / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    said = cli("verify", artifact, "--against", mlp)
    assert said.code == 2
    assert "QC709" in said.err


@pytest.mark.parametrize("command", ["compile", "explain", "verify", "bench", "probe", "opt"])
def test_help_shows_every_option(cli: Cli, command: str) -> None:
    said = cli(command, "--help")
    assert said.code == 0
    assert "--help" in said.out


def test_help_of_compile_names_the_recipes(cli: Cli) -> None:
    words = set(cli("compile", "--help").out.replace("│", " ").replace(",", " ").split())
    variants = ("-light", "-best", "-e5m2")  # said behind their stem, or left to the docs
    assert {name for name in RECIPES if not name.endswith(variants)} <= words | {"float"}


def test_keep_float_returns_nodes_and_explain_ranks_them(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    recipe, folder = tmp_path / "forced.toml", tmp_path / "ranked"
    recipe.write_text('base = "static-int8"\nforce = true\n')
    options = ("--recipe", recipe, "--calibration", data, "--keep-float", 1, "-o", folder)
    assert cli("compile", mlp, *options, "--quiet").code == 0
    said = cli("explain", folder, "--sensitivity")
    assert said.code == 0
    first = next(line for line in said.out.splitlines() if line.strip().startswith("1 "))
    assert first.rstrip().endswith("float, returned")
    assert "QC123" in cli("explain", folder).out


def test_explain_ranks_the_nodes_of_a_model(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    recipe = tmp_path / "forced.toml"
    recipe.write_text('base = "static-int8"\nforce = true\n')
    options = ("--recipe", recipe, "--calibration", data, "--sensitivity")
    assert "quantized" in cli("explain", mlp, *options).out


def test_explain_says_when_sensitivity_was_not_measured(cli: Cli, artifact: pathlib.Path) -> None:
    assert "--sensitivity" in cli("explain", artifact, "--sensitivity").out


def test_max_drop_wants_a_share(cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert cli("compile", mlp, "--max-drop", -1, "-o", tmp_path / "out").code == 2
    assert cli("compile", mlp, "--max-drop", "nan", "-o", tmp_path / "out").code == 2

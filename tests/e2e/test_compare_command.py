"""``qcompile compare``: artifacts and other tools' files, table and JSON, bad input."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from qcompiler_models import tiny
from quantized_by_others import quantize

Cli = Callable[..., Any]


def test_an_artifact_is_compared_node_by_node(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    recipe = tmp_path / "forced.toml"
    recipe.write_text('base = "static-int8"\nforce = true\n')
    out = tmp_path / "out"
    assert cli("compile", mlp, "-o", out, "--recipe", recipe, "--calibration", data).code == 0
    said = cli("compare", mlp, out, "--data", data, "--json")
    assert said.code == 0
    assert said.json["feeds"] == 4
    row = said.json["layers"][0]
    assert {"node", "op", "sqnr_db", "cosine", "weight_share", "jump"} <= set(row)
    shown = cli("compare", mlp, out, "--data", data, "--feeds", 1)
    assert "nodes on 1 feeds" in shown.out
    assert "error" in shown.out


def test_a_file_of_another_tool_compiles_and_compares(
    cli: Cli, mlp: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file = quantize(tiny.build("mlp"), tiny.feeds("mlp", 4), tmp_path)
    out = tmp_path / "again"
    assert cli("compile", file, "-o", out, "-q").code == 0
    assert (out / "model.onnx").is_file()
    assert cli("compare", mlp, file, "--data", data, "--json").json["layers"]


def test_a_file_that_is_not_there_is_told(cli: Cli, mlp: pathlib.Path) -> None:
    said = cli("compare", mlp, "nowhere.onnx")
    assert said.code == 2
    assert "QC701" in said.err


def test_models_that_are_no_two_forms_of_one_are_refused(
    cli: Cli, mlp: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other, out = tmp_path / "other.onnx", tmp_path / "out"
    ir.save(tiny.build("convnet"), other)
    said = cli("compare", other, mlp)
    assert said.code == 2
    assert "name the float model that it was compiled from" in said.err
    assert cli("compile", mlp, "--recipe", "float", "-o", out, "-q").code == 0
    assert (
        "name the float model that it was compiled from"
        in cli("verify", out, "--against", other).err
    )
    said = cli("compare", out, mlp)  # the wrong way around
    assert said.code == 2
    assert "this is an artifact, wanted the float model" in said.err

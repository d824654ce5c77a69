"""``verify`` and ``compare`` of a language model: what the recipe left out, text as data."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import decoders
from qcompiler import qcompile
from qcompiler.verify.again import verify_artifact

Cli = Callable[..., Any]
RECIPE = {"base": "weight-int8", "last_logits": True, "text": {"length": 24}}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    decoders.decoder("llama").save_pretrained(tmp_path / "llama")
    decoders.save_tokenizer(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def text(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "text.txt"
    path.write_text("the keeper of the lamp, the lamp of the keeper " * 40)
    return path


def test_logits_of_the_last_token_are_held_against_float_s(
    folder: pathlib.Path, text: pathlib.Path
) -> None:
    artifact = qcompile(folder, "cpu-vnni", RECIPE)
    for data in (None, text, text):  # twice, since the float model must stay as it is
        report = verify_artifact(artifact, folder, data)
        assert not report.errors
        assert report.fidelity[0]["output"] == "logits"
        assert report.fidelity[0]["cosine"] > 0.99


def test_the_commands_take_text(
    cli: Cli, folder: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    recipe, out = tmp_path / "recipe.json", tmp_path / "out"
    recipe.write_text(json.dumps(RECIPE))
    assert cli("compile", folder, "--recipe", recipe, "-o", out, "-q").code == 0
    said = cli("verify", out, "--against", folder, "--data", text)
    assert said.code == 0, said.err
    assert "past_key_values.1.value[" not in said.out  # shapes of the first few do
    compared = cli("compare", folder, out, "--data", text, "--feeds", 2, "--json")
    assert compared.code == 0, compared.err
    found = json.loads(compared.out)
    assert found["feeds"] == 2
    assert found["unmatched"] == 0
    nodes = {row["node"].split("/")[0] for row in found["layers"]}
    assert {"lm_head", "model.layers.1.self_attn.k_proj"} <= nodes  # though q, k, v are one product

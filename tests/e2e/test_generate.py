"""Language models from folder to text: the artifact runs under ONNX Runtime GenAI unchanged."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from decoders import decoder, decoder_feed, save_tokenizer
from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime import generate
from qcompiler.runtime.inputs import input_specs

transformers = pytest.importorskip("transformers")
genai = pytest.importorskip("onnxruntime_genai")
tokenizers = pytest.importorskip("tokenizers")

Cli = Callable[..., Any]
PROMPT = "the keeper of "


def folder_of(name: str, folder: pathlib.Path) -> pathlib.Path:
    model = decoder(name)
    model.generation_config.eos_token_id = None  # so that every run makes as many tokens
    model.config.eos_token_id = None
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def greedy(artifact: Artifact, ids: list[int], count: int) -> list[int]:
    """Tokens that the artifact's own session finds most likely, one after the other."""
    specs, made = input_specs(artifact.model), []
    given, past, length = np.array([ids]), None, len(ids)
    for _ in range(count):
        mask = np.ones((1, length), np.int64)
        past = artifact.run(decoder_feed(given, mask, past, specs))
        made.append(int(past["logits"][0, -1].argmax()))
        given, length = np.array([made[-1:]]), length + 1
    return made


@pytest.mark.parametrize(
    ("name", "recipe", "last_logits"),
    [
        ("llama-tied", "weight-int4", True),
        ("qwen3", "weight-int8", False),
        ("gemma2", "float", True),
        ("gpt2", "weight-int4", False),
        ("phi", "weight-int4", True),
        ("granite", "weight-int4", True),
        ("smollm3", "weight-int8", False),
    ],
)
def test_genai_makes_the_tokens_of_the_artifacts_own_session(
    name: str, recipe: str, last_logits: bool, tmp_path: pathlib.Path, cli: Cli
) -> None:
    source = folder_of(name, tmp_path / "model")
    wanted_recipe = tmp_path / "recipe.json"
    wanted_recipe.write_text(json.dumps({"base": recipe, "last_logits": last_logits}))
    said = cli("compile", source, "--recipe", wanted_recipe, "-o", tmp_path / "out", "-q")
    assert said.code == 0, said.err
    artifact = Artifact.load(tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    wanted = tokenizer.decode(greedy(artifact, tokenizer.encode(PROMPT).ids, 12))
    said = cli("generate", tmp_path / "out", "--prompt", PROMPT, "--max-new-tokens", 12)
    assert said.code == 0, said.err
    assert said.out.rstrip("\n") == wanted


def test_session_options_of_the_artifact_stand_in_the_genai_config(tmp_path: pathlib.Path) -> None:
    artifact = qcompile(folder_of("llama", tmp_path), recipe="weight-int8", threads=1)
    config = json.loads(artifact.companions["genai_config.json"])
    options = config["model"]["decoder"]["session_options"]
    assert artifact.settings.level == "disable"
    assert options["graph_optimization_level"] == "ORT_DISABLE_ALL"
    assert {"tokenizer.json", "tokenizer_config.json"} < artifact.companions.keys()


def test_a_model_without_a_tokenizer_is_refused_when_text_is_wanted(tmp_path: pathlib.Path) -> None:
    recipe = {"base": "float", "verify": {"enabled": False}}
    qcompile(decoder("llama"), recipe=recipe, output=tmp_path / "out")
    with pytest.raises(QcError, match="no tokenizer") as caught:
        list(generate.generate(tmp_path / "out", PROMPT))
    assert caught.value.diagnostic.code is Code.NOT_ARTIFACT


def test_a_folder_without_a_language_model_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(QcError, match="holds no language model"):
        list(generate.generate(tmp_path, PROMPT))
    with pytest.raises(QcError, match="there is no such folder"):
        list(generate.generate(tmp_path / "typo", PROMPT))


@pytest.mark.parametrize("prompt", ["", "lamp " * 200])
def test_a_prompt_that_is_empty_or_too_long_is_refused(prompt: str, tmp_path: pathlib.Path) -> None:
    recipe = {"base": "float", "verify": {"enabled": False}}
    qcompile(folder_of("llama", tmp_path / "model"), recipe=recipe, output=tmp_path / "out")
    with pytest.raises(QcError, match="wanted 1 to 63") as caught:
        list(generate.generate(tmp_path / "out", prompt))
    assert caught.value.diagnostic.code is Code.USAGE


def test_text_ends_where_the_model_can_read_no_more(tmp_path: pathlib.Path) -> None:
    recipe = {"base": "float", "verify": {"enabled": False}}
    source = folder_of("llama", tmp_path / "model")
    qcompile(source, recipe=recipe, output=tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    pieces = list(generate.generate(tmp_path / "out", PROMPT, new_tokens=1000))
    assert len(pieces) == 64 - len(tokenizer.encode(PROMPT).ids)


def test_the_missing_package_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QcError, match="not installed") as caught:
        list(generate.generate(tmp_path, PROMPT))
    assert "qcompiler-onnx[genai]" in str(caught.value)

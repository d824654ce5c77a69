"""Text calibrates a language model through the API."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import decoders
from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code, QcError

TEXT = "the keeper of the lamp, the lamp of the keeper " * 40
RECIPE = {
    "base": "w4-gptq",
    "weights": {"group_size": 16},
    "text": {"samples": 8, "length": 32},
    "verify": {"guard": False},
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    decoders.decoder("llama").save_pretrained(tmp_path / "llama")
    decoders.save_tokenizer(tmp_path / "llama")
    return tmp_path / "llama"


def compile_text(folder: pathlib.Path, source: object, **text: int) -> list[Code]:
    recipe = {**RECIPE, "text": {**RECIPE["text"], **text}}  # type: ignore[dict-item]
    artifact = qcompile(folder, target="cpu-vnni", recipe=recipe, calibration=source)
    said = [x for x in artifact.report.diagnostics if x.code is Code.ROUNDED_IN_STAGES]
    assert said[0].values["layers"] >= 14
    assert said[0].values["feeds"] == min(8, text.get("samples", 8))
    return [item.code for item in artifact.report.diagnostics]


def test_without_data_the_model_writes_texts(folder: pathlib.Path) -> None:
    recipe = {**RECIPE, "text": {"length": 100, "own_samples": 6, "seed": 3}}

    def compiled() -> Artifact:
        return qcompile(folder, target="cpu-vnni", recipe=recipe)

    first, second = compiled(), compiled()
    told = next(x for x in first.report.diagnostics if x.code is Code.OWN_TEXT)
    assert told.values == {"samples": 6, "length": 64, "seed": 3}  # the model takes no more
    stages = next(x for x in first.report.diagnostics if x.code is Code.ROUNDED_IN_STAGES)
    assert stages.values["feeds"] == 6
    assert first.manifest["calibration"] == second.manifest["calibration"]
    recipe["text"]["own_samples"] = 0  # type: ignore[index]
    with pytest.raises(QcError) as found:
        compiled()
    assert found.value.code is Code.NEEDS_CALIBRATION


def test_strings_files_and_tokens_are_taken(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    for source in ([TEXT], tmp_path / "text.txt", decoders.tokens(8, 32)):
        assert Code.FEW_SAMPLES not in compile_text(folder, source)
    items = [
        {"input_ids": row, "attention_mask": np.ones(32, int)} for row in decoders.tokens(8, 32)
    ]
    assert Code.FEW_SAMPLES in compile_text(folder, items, samples=100)


def test_what_does_not_fit_is_refused(folder: pathlib.Path) -> None:
    with pytest.raises(QcError) as found:
        compile_text(folder, [TEXT], length=65)
    assert found.value.code is Code.USAGE
    assert "64" in str(found.value)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(QcError) as found:
        compile_text(folder, [TEXT])
    assert found.value.code is Code.NO_TOKENIZER

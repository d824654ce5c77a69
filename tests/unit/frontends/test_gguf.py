"""GGUF files: logits of what they hold, tokenizer, refusals, command line."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from typer.testing import CliRunner

from decoders import decoder, transformers_logits
from gguf_files import save_gguf
from qcompiler import Artifact, qcompile
from qcompiler.cli.app import app
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.runtime.session import open_session, run


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_logits_are_those_of_the_numbers_in_the_file(kind: str, tmp_path: pathlib.Path) -> None:
    model = decoder("llama")
    before = model.lm_head.weight.detach().clone()
    save_gguf(tmp_path / "model.gguf", model, kind)
    assert (kind == "F32") == bool((before == model.lm_head.weight).all())
    opened = open_model(tmp_path / "model.gguf")
    assert opened.example is not None
    found = run(open_session(opened.model, threads=1), opened.example)["logits"]
    wanted = transformers_logits(model, opened.example["input_ids"])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert Code.TOKENIZER_MISSING not in {item.code for item in opened.diagnostics}


def test_the_command_compiles_a_file_with_text_in_its_own_tokens(tmp_path: pathlib.Path) -> None:
    save_gguf(tmp_path / "model.gguf", decoder("llama"), "Q8_0")
    (tmp_path / "text.txt").write_text("abcabbacab" * 200)
    (tmp_path / "recipe.toml").write_text(
        'base = "w4-gptq"\nweights.group_size = 16\ntext = {samples = 4, length = 32}\n'
        "verify.guard = false\n"
    )
    command = ["compile", "model.gguf", "--recipe", "recipe.toml", "--calibration", "text.txt"]
    full = [part if "." not in part else str(tmp_path / part) for part in command]
    done = CliRunner().invoke(app, [*full, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    artifact = Artifact.load(tmp_path / "out")
    assert {"genai_config.json", "tokenizer.json"} <= set(artifact.companions)
    assert any(node.op_type == "MatMulNBits" for node in artifact.model.graph)


@pytest.mark.parametrize("merges", [None, ("a nothing",)])
def test_a_file_without_a_tokenizer_compiles_and_says_what_it_lacks(
    merges: tuple[str, ...] | None, tmp_path: pathlib.Path
) -> None:
    save_gguf(tmp_path / "model.gguf", decoder("llama"), "F32", merges=merges)
    artifact = qcompile(tmp_path / "model.gguf", "cpu-vnni", "weight-int4")
    told = [x for x in artifact.report.diagnostics if x.code is Code.TOKENIZER_MISSING]
    assert len(told) == 1
    assert "transformers cannot read" in told[0].message
    assert "tokenizer.json" not in artifact.companions


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(path, decoder("llama"), "F32", architecture="nothingknown")
    with pytest.raises(QcError, match="nothingknown") as found:
        open_model(path)
    assert found.value.code is Code.UNSUPPORTED_INPUT
    save_gguf(path, decoder("llama"), "F32")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(QcError, match="cannot load") as found:
        open_model(path)
    assert found.value.code is Code.UNSUPPORTED_INPUT
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(QcError, match="cannot load"):
        open_model(path)
    path.write_bytes(b"no model at all")
    with pytest.raises(QcError, match="GGUF"):
        open_model(path)

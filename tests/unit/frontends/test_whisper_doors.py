"""The Whisper builder: numbers of transformers with and without a cache, refusals."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from checkpoints import configure
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.frontends.opened import Opened
from qcompiler.ir.lazy import tied
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from whispers import SIZES, features, save_tokenizer, step_feed, transformers_outputs, whisper

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = 2e-5  # of the largest number; float32 through two layers, kernels of two libraries


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


def tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 101, (batch, length))


def heard(opened: Opened, sound: np.ndarray) -> dict[str, np.ndarray]:
    assert opened.encoder is not None
    session = open_session(opened.encoder.model, threads=1)
    return run(session, {"audio_features": sound})


@pytest.mark.parametrize(
    ("batch", "length", "changes"),
    [
        (1, 1, {}),
        (2, 11, {}),
        (3, 40, {"activation_function": "relu", "max_source_positions": 7}),
        (2, 7, {"decoder_layers": 3, "encoder_layers": 1, "num_mel_bins": 128}),
    ],
)
def test_encoder_and_decoder_give_the_numbers_of_transformers(
    batch: int, length: int, changes: dict[str, Any]
) -> None:
    model = whisper(**changes)
    sound, ids = features(model, batch), tokens(batch, length)
    wanted = transformers_outputs(model, sound, ids)
    opened = open_model(model)
    made = heard(opened, sound)
    check(made["encoder_hidden_states"], wanted["encoder_hidden_states"])
    session, specs = open_session(opened.model, threads=1), input_specs(opened.model)
    check(run(session, step_feed(ids, made, specs))["logits"], wanted["logits"])


@pytest.mark.parametrize(
    ("batch", "ends"),
    [(2, (1, 2, 3)), (2, (5, 6, 7)), (1, (4, 5, 12))],  # several texts take a token at a time
)
def test_a_text_goes_on_behind_its_cache(batch: int, ends: tuple[int, ...]) -> None:
    model = whisper()
    sound, ids = features(model, batch), tokens(batch, 12)
    wanted = transformers_outputs(model, sound, ids)["logits"]
    opened = open_model(model)
    made = heard(opened, sound)
    session, specs = open_session(opened.model, threads=1), input_specs(opened.model)
    begin = 0
    for end in ends:
        made |= run(session, step_feed(ids[:, begin:end], made, specs))
        check(made["logits"], wanted[:, begin:end])
        assert made["present_key_self_1"].shape == (batch, 2, end, 32)
        begin = end


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folder_gives_the_numbers_of_its_weights_whatever_their_type(
    dtype: str, tmp_path: pathlib.Path
) -> None:
    whisper().to(getattr(torch, dtype)).save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.example is not None
    assert opened.encoder is not None
    assert opened.encoder.example is not None
    sound, ids = opened.encoder.example["audio_features"], opened.example["input_ids"]
    wide = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32
    )
    wanted = transformers_outputs(wide.eval(), sound, ids)
    check(heard(opened, sound)["encoder_hidden_states"], wanted["encoder_hidden_states"])
    check(run(open_session(opened.model, threads=1), opened.example)["logits"], wanted["logits"])


def test_the_head_is_the_table() -> None:
    constants = open_model(whisper()).model.graph.initializers
    table, head = constants["model.decoder.embed_tokens.weight"], constants["proj_out.weight"]
    assert tied(table.const_value, head.const_value)


def test_files_for_genai_name_what_the_graphs_have(tmp_path: pathlib.Path) -> None:
    whisper().save_pretrained(tmp_path)
    assert Code.TOKENIZER_MISSING in {item.code for item in open_model(tmp_path).diagnostics}
    save_tokenizer(tmp_path)
    opened = open_model(tmp_path)
    assert Code.TOKENIZER_MISSING not in {item.code for item in opened.diagnostics}
    assert opened.encoder is not None
    files = opened.companions(SessionSettings("basic"), SessionSettings("disable"))
    assert {"tokenizer.json", "audio_processor_config.json", "generation_config.json"} < set(files)
    said = json.loads(files["genai_config.json"])["model"]
    options = [said[part]["session_options"] for part in ("decoder", "encoder")]
    levels = [option["graph_optimization_level"] for option in options]
    assert levels == ["ORT_ENABLE_BASIC", "ORT_DISABLE_ALL"]
    assert said["vocab_size"] == SIZES["vocab_size"]
    for part, graph in (("decoder", opened.model.graph), ("encoder", opened.encoder.model.graph)):
        there = {value.name for value in (*graph.inputs, *graph.outputs)}
        said_names = [*said[part]["inputs"].values(), *said[part]["outputs"].values()]
        expanded = {
            name % index if "%d" in name else name
            for name in said_names
            for index in range(SIZES["decoder_layers"])
        }
        assert expanded == there


def test_a_model_in_memory_brings_how_it_makes_text() -> None:
    model = whisper()
    model.generation_config.is_multilingual = True
    files = open_model(model).companions(SessionSettings())
    assert json.loads(files["generation_config.json"])["is_multilingual"] is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "tanh"}, "activation 'tanh'"),
        ({"scale_embedding": True}, "scaled embeddings"),
        ({"tie_word_embeddings": False}, "a head of its own"),
    ],
)
def test_a_part_that_cannot_be_written_is_named(
    changes: dict[str, Any], said: str, tmp_path: pathlib.Path
) -> None:
    whisper().save_pretrained(tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(QcError, match=said) as caught:
        open_model(tmp_path)
    assert caught.value.diagnostic.code is Code.UNSUPPORTED_INPUT
    assert "example_inputs" in (caught.value.diagnostic.hint or "")


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        ("decoder_ffn_dim", 96, r"config\.json wants"),
        ("encoder_layers", 1, r"model\.encoder\.layers\.1"),  # which no part reads
        ("max_target_positions", 0, "max_target_positions of the configuration is 0"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused(
    name: str, found: int, said: str, tmp_path: pathlib.Path
) -> None:
    whisper().save_pretrained(tmp_path)
    configure(tmp_path, **{name: found})
    with pytest.raises(QcError, match=said):
        open_model(tmp_path)


def test_example_inputs_give_the_plain_export() -> None:
    model = whisper()
    inputs = {
        "input_features": torch.from_numpy(features(model, 2)),
        "decoder_input_ids": torch.from_numpy(tokens(2, 6)),
    }
    opened = open_model(model, inputs)
    assert opened.encoder is None
    assert {value.name for value in opened.model.graph.inputs} == set(inputs)


def test_other_encoder_decoders_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, vocab_size=50
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(QcError, match="'t5'") as caught:
        open_model(tmp_path)
    assert caught.value.diagnostic.code is Code.UNSUPPORTED_INPUT
    assert "decoder_input_ids" in (caught.value.diagnostic.hint or "")


def test_a_folder_that_names_no_class_is_the_model_that_makes_text(tmp_path: pathlib.Path) -> None:
    whisper().save_pretrained(tmp_path)
    configure(tmp_path, architectures=None)
    opened = open_model(tmp_path)
    assert opened.encoder is not None
    assert Code.CLASS_ASSUMED in {item.code for item in opened.diagnostics}

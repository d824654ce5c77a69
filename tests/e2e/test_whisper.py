"""Whisper tiny.en: encoder and decoder in 8 bits hear the words that the float ones hear."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

from qcompiler import Artifact, qcompile
from qcompiler_models import load_model, speech, whisper

pytestmark = pytest.mark.slow

TARGET = "cpu-vnni"  # fixed, as are its costs: the plan is the same on every machine
CLIPS = 6


@functools.cache
def compiled(name: str) -> Artifact:
    model = load_model(name)
    rules = []
    if name == "whisper-encoder":
        # Both cost several decibels: convolutions read the spectrogram, fc2 the outliers of Gelu.
        rules = [{"op": "Conv", "scheme": "float"}, {"match": "*.fc2*", "scheme": "float"}]
    recipe = {"base": "static-int8", "rules": rules, "verify": {"guard": False}}
    return qcompile(model.onnx(), TARGET, recipe, model.calibration(), check=False)


def test_no_clip_is_calibrated_and_scored() -> None:
    scored = {tuple(speech.words(clip.text)) for clip in speech.scored_clips()}
    calibrated = {tuple(speech.words(clip.text)) for clip in speech.calibration_clips(99)}
    assert len(scored) == 42
    assert not scored & calibrated


def test_float_hears_the_words_that_were_said() -> None:
    encoder, decoder = load_model("whisper-encoder"), load_model("whisper-decoder")
    heard = whisper.listen(encoder.float_run, decoder.float_run, CLIPS)
    assert heard["wer"] <= 0.06
    assert heard["nll"] <= 1.0  # these texts have neither capitals nor points, which it gives


@pytest.mark.parametrize(("name", "heads"), [("whisper-encoder", 4), ("whisper-decoder", 8)])
def test_every_attention_is_one_node_and_linear_layers_are_integer(name: str, heads: int) -> None:
    operators = [node.op_type for node in compiled(name).model.graph]
    assert operators.count("Attention") == heads
    assert "Softmax" not in operators
    assert operators.count("MatMulIntegerToFloat") >= 20


def test_encoder_and_decoder_in_8_bits_hear_what_float_hears() -> None:
    encoder, decoder = compiled("whisper-encoder"), compiled("whisper-decoder")
    scores = load_model("whisper-encoder").score(encoder.run, limit=CLIPS)
    assert scores["cosine_min"] >= 0.998
    heard = whisper.listen(encoder.run, decoder.run, CLIPS)
    wanted = whisper.listen(
        load_model("whisper-encoder").float_run, load_model("whisper-decoder").float_run, CLIPS
    )
    assert np.mean(heard["best"] == wanted["best"]) >= 0.9
    assert abs(heard["nll"] - wanted["nll"]) <= 0.1 * wanted["nll"]
    assert heard["wer"] <= wanted["wer"] + 0.05


def test_the_decoder_takes_any_number_of_tokens_and_its_table_is_stored_once() -> None:
    proto = onnx.load(load_model("whisper-decoder").onnx())
    tables = [tensor for tensor in proto.graph.initializer if 51864 in tensor.dims]
    assert len(tables) == 1
    decoder = load_model("whisper-decoder")
    feed = decoder.calibration(1)[0]
    shorter = {**feed, "input_ids": feed["input_ids"][:, :5]}
    whole = decoder.float_run(feed)["logits"]
    np.testing.assert_allclose(
        decoder.float_run(shorter)["logits"], whole[:, :5], rtol=0, atol=1e-3
    )

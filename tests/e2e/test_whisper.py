"""Whisper tiny.en: encoder and decoder in 8 bits hear the words that the float ones hear."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code
from qcompiler.plan import Verdict
from qcompiler_models import load_model, speech, whisper

pytestmark = pytest.mark.slow

TARGET = "cpu-vnni"  # fixed, as are its costs: the plan is the same on every machine


@functools.cache
def compiled(name: str) -> Artifact:
    model = load_model(name)
    own = {"base": model.recipe} if isinstance(model.recipe, str) else model.recipe
    recipe = {**own, "verify": {"guard": False}}
    return qcompile(model.onnx(), TARGET, recipe, model.calibration(), check=False)


def test_no_clip_is_calibrated_and_scored() -> None:
    scored = {tuple(speech.words(clip.text)) for clip in speech.scored_clips()}
    calibrated = {tuple(speech.words(clip.text)) for clip in speech.calibration_clips(99)}
    assert len(scored) == 42
    assert not scored & calibrated


@pytest.mark.parametrize(
    ("name", "kernel", "layers"),
    [("whisper-encoder", "MultiHeadAttention", 4), ("whisper-decoder", "Attention", 8)],
)
def test_every_attention_is_one_node_and_linear_layers_are_integer(
    name: str, kernel: str, layers: int
) -> None:
    operators = [node.op_type for node in compiled(name).model.graph]
    assert operators.count(kernel) == layers
    assert "Softmax" not in operators
    assert operators.count("MatMulIntegerToFloat") >= 20


@functools.cache
def heard(quantized: bool) -> dict[str, Any]:
    """What all scored clips give: 546 words, 684 tokens."""
    names = ("whisper-encoder", "whisper-decoder")
    runs = [compiled(name).run if quantized else load_model(name).float_run for name in names]
    return whisper.listen(*runs)


def test_float_hears_the_words_that_were_said() -> None:
    found = heard(quantized=False)
    assert found["wer"] <= 0.06
    assert found["nll"] <= 1.0  # these texts have neither capitals nor points, which it gives


def test_encoder_and_decoder_in_8_bits_hear_what_float_hears() -> None:
    found, wanted = heard(quantized=True), heard(quantized=False)
    assert found["wer"] <= wanted["wer"] + 0.005
    assert found["token_accuracy"] >= wanted["token_accuracy"] - 0.005
    assert abs(found["nll"] - wanted["nll"]) <= 0.007 * wanted["nll"]


def test_nearly_every_token_is_the_one_of_float() -> None:
    # steadier than errors of words, of which a single one is 0.2 points
    found, wanted = heard(quantized=True), heard(quantized=False)
    assert np.mean(found["best"] == wanted["best"]) >= 0.99


def test_only_the_convolution_that_reads_the_spectrogram_stays_in_float() -> None:
    plan = compiled("whisper-encoder").plan
    convolutions = {name: item for name, item in plan.nodes.items() if "conv1d" in name}
    kept = [item for item in convolutions.values() if item.verdict is Verdict.FLOAT]
    assert [item.reason.code for item in kept if item.reason] == [Code.INPUT_LAYER]


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

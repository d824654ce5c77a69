"""Whisper from folder to text: plain ONNX Runtime runs both parts, GenAI the folder, unchanged."""

from __future__ import annotations

import json
import pathlib
import shutil
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.bench.command import bench_models
from qcompiler.diagnostics import Code, QcError
from qcompiler.plan import Verdict
from qcompiler.runtime import generate
from qcompiler.runtime.inputs import input_specs
from qcompiler.verify.layers import compare_layers
from whispers import features, save_tokenizer, step_feed, transformers_outputs, whisper

transformers = pytest.importorskip("transformers")

Cli = Callable[..., Any]
PLAIN = {"verify": {"enabled": False}}
TOKENS = np.random.default_rng(0).integers(3, 101, (2, 9))


def folder_of(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    whisper(**changes).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def outputs(artifact: Artifact, sound: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Of both parts: a prompt of all tokens but the last, which follows behind the cache."""
    assert artifact.encoder is not None
    made = artifact.encoder.run({"audio_features": sound})
    specs = input_specs(artifact.model)
    made |= artifact.run(step_feed(ids[:, :-1], made, specs))
    return made | artifact.run(step_feed(ids[:, -1:], made, specs))


@pytest.mark.parametrize(
    ("recipe", "least"),
    [("float", 0.999999), ("weight-int8", 0.999), ("weight-int4", 0.95), ("w4-rtn", 0.95)],
)
def test_both_parts_have_verdicts_and_are_verified(
    recipe: str, least: float, tmp_path: pathlib.Path
) -> None:
    model, sound = whisper(), features(whisper(), 2)
    qcompile(model, recipe=recipe, threads=1, output=tmp_path / "out")
    artifact = Artifact.load(tmp_path / "out")
    assert list(artifact.parts) == ["encoder", "decoder"]
    wanted = transformers_outputs(model, sound, TOKENS)
    found = outputs(artifact, sound, TOKENS)
    for name, of in (("encoder_hidden_states", slice(None)), ("logits", slice(-1, None))):
        a, b = found[name].ravel(), wanted[name][:, of].ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= least
    for part in artifact.parts.values():
        assert part.report.coverage["unexplained"] == 0
        assert part.report.fidelity
        layers = [item for item in part.plan if item.op == "MatMul"]
        quantized = Verdict.FLOAT if recipe == "float" else Verdict.QUANTIZED
        assert {item.verdict for item in layers} == {quantized}


def test_the_encoder_has_a_recipe_of_its_own_and_rules_speak_of_the_decoder() -> None:
    recipe = {"base": "weight-int4", "rules": [{"match": "proj_out", "bits": 8}], **PLAIN}
    artifact = qcompile(whisper(), recipe=recipe)
    assert artifact.encoder is not None
    assert artifact.encoder.manifest["recipe"]["rules"] == []
    named = qcompile(whisper(), recipe={**recipe, "encoder": {"base": "float", **PLAIN}})
    assert named.encoder is not None
    assert {item.verdict for item in named.encoder.plan} == {Verdict.FLOAT}
    with pytest.raises(QcError, match="no recipe"):
        qcompile(whisper(), recipe={"encoder": {"base": "weight-int5"}})


def test_calibration_data_are_sound_and_its_text() -> None:
    model = whisper()
    feeds = [{"audio_features": features(model, 1, i), "input_ids": TOKENS[:1]} for i in range(4)]
    recipe = {
        "base": "w4-gptq",
        "text": {"samples": 4},
        "encoder": {"base": "static-int8", "force": True, "auto": None},
    }
    artifact = qcompile(model, recipe=recipe, calibration=iter(feeds), threads=1)
    plain = qcompile(model, recipe="w4-rtn", threads=1)
    assert artifact.encoder is not None
    assert artifact.encoder.report.calibration
    ratio = [item.report.fidelity[0]["sqnr_db"] for item in (artifact, plain)]
    assert ratio[0] > ratio[1] - 1
    with pytest.raises(QcError, match="input_ids"):
        qcompile(model, recipe=recipe, calibration=[{"audio_features": features(model, 1)}])


def test_the_cache_of_the_decoder_may_be_int8() -> None:
    model = whisper()
    feeds = [{"audio_features": features(model, 1, i), "input_ids": TOKENS[:1]} for i in range(2)]
    recipe = {"base": "float", "kv_cache": "int8-channel"}
    artifact = qcompile(model, recipe=recipe, calibration=feeds, threads=1)
    types = {spec.name: spec.dtype for spec in input_specs(artifact.model)}
    assert {types[f"past_{word}_self_{i}"] for word in ("key", "value") for i in range(2)} == {
        np.dtype(np.int8)
    }
    assert types["past_key_cross_0"] == np.float32
    assert artifact.report.fidelity[0]["cosine"] >= 0.999


def test_an_artifact_without_its_encoder_is_damaged(tmp_path: pathlib.Path) -> None:
    qcompile(whisper(), recipe={"base": "float", **PLAIN}, output=tmp_path / "out")
    with (tmp_path / "out/encoder/model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(QcError, match="is not what the manifest says"):
        Artifact.load(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/encoder")
    with pytest.raises(QcError, match="is missing") as caught:
        Artifact.load(tmp_path / "out")
    assert caught.value.diagnostic.code is Code.NOT_ARTIFACT


def test_commands_speak_of_both_parts(tmp_path: pathlib.Path, cli: Cli) -> None:
    source, target = folder_of(tmp_path / "model"), tmp_path / "out"
    said = cli("compile", source, "--recipe", "weight-int8", "-o", target, "--json")
    assert said.code == 0, said.err
    assert said.json["encoder"]["fidelity"][0]["output"] == "encoder_hidden_states"
    assert said.json["fidelity"][0]["output"] == "logits"
    again = cli("verify", target, "--against", source, "--json")
    assert again.code == 0, again.err
    assert again.json["encoder"]["fidelity"][0]["output"] == "encoder_hidden_states"
    for place, layer in ((target, "proj_out"), (target / "encoder", "model.encoder.layers.0.fc1")):
        told = cli("explain", place, "--json")
        assert f"{layer}/MatMul" in {item["node"] for item in told.json["plan"]["nodes"]}
        assert cli("compare", source, place, "--json").code == 0
    both = cli("compare", source, target, "--json").json
    rows = [{row["node"] for row in side["layers"]} for side in (both, both["encoder"])]
    assert "model.decoder.layers.0.fc1/MatMul" in rows[0]
    assert "model.encoder.layers.0.fc1/MatMul" in rows[1]
    shown = cli("compare", source, target).out
    assert shown.index("encoder ─") < shown.index("decoder ─")
    part = Artifact.load(target).encoder
    assert {row.node for row in compare_layers(source, part, shares=False).rows} == rows[1]
    timed = cli("bench", target, "--against", target, "--rounds", 1, "--seconds", 0.01, "--json")
    assert [row["name"] for row in timed.json] == ["out/encoder"] * 2 + ["out/decoder"] * 2
    spoken = [{"audio_features": features(whisper(), 1), "input_ids": TOKENS[:1]}]
    assert len(bench_models(target, target, spoken, rounds=1, seconds=0.01)) == 4
    followed = cli("compile", source, "--plan", target, "-o", tmp_path / "again", "-q")
    assert followed.code == 0, followed.err
    files = [place / "encoder/model.onnx" for place in (target, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


TONE = 0.25 * np.sin(np.arange(16_000) / 16)  # a second


def save_sound(path: pathlib.Path, samples: np.ndarray = TONE) -> pathlib.Path:
    """Samples from -1 to 1 as a file of 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def greedy(artifact: Artifact, sound: np.ndarray, ids: list[int], count: int) -> list[int]:
    """Tokens that the artifact's own sessions find most likely, one after the other."""
    assert artifact.encoder is not None
    made = artifact.encoder.run({"audio_features": sound})
    specs, said, given = input_specs(artifact.model), [], np.array([ids])
    for _ in range(count):
        made |= artifact.run(step_feed(given, made, specs))
        said.append(int(made["logits"][0, -1].argmax()))
        given = np.array([said[-1:]])
    return said


@pytest.mark.parametrize("recipe", ["float", "weight-int4"])
def test_genai_writes_what_the_artifacts_own_sessions_hear(
    recipe: str, tmp_path: pathlib.Path, cli: Cli
) -> None:
    pytest.importorskip("onnxruntime_genai")
    tokenizers = pytest.importorskip("tokenizers")
    # GenAI reads 30 seconds, and no end token, so that every run makes as many tokens
    source = folder_of(tmp_path / "model", max_source_positions=1500, eos_token_id=None)
    qcompile(source, recipe={"base": recipe, **PLAIN}, output=tmp_path / "out")
    artifact = Artifact.load(tmp_path / "out")
    path = save_sound(tmp_path / "tone.wav")
    extract = transformers.WhisperFeatureExtractor()
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(16_000), "<i2").astype(np.float32) / 32768
    sound = extract(samples, sampling_rate=16_000, return_tensors="np")["input_features"]
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    prompt = tokenizer.encode("<|startoftranscript|><|notimestamps|>").ids
    wanted = tokenizer.decode(greedy(artifact, sound, prompt, 12), skip_special_tokens=False)
    said = cli("generate", tmp_path / "out", "--audio", path, "--max-new-tokens", 12)
    assert said.code == 0, said.err
    assert said.out.rstrip("\n") == wanted


def test_a_multilingual_model_is_asked_for_english(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    source = folder_of(tmp_path / "model", max_source_positions=1500, eos_token_id=None)
    qcompile(source, recipe={"base": "float", **PLAIN}, output=tmp_path / "out")
    path = save_sound(tmp_path / "tone.wav")

    def text(prompt: str | None) -> str:
        return "".join(generate.generate(tmp_path / "out", prompt, audio=path, new_tokens=6))

    english = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    plain = "<|startoftranscript|><|notimestamps|>"
    assert text(plain) != text(english)
    assert text(None) == text(plain)
    (tmp_path / "out/generation_config.json").write_text('{"is_multilingual": true}')
    assert text(None) == text(english)


def test_what_generate_cannot_hear_is_refused(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    source = folder_of(tmp_path / "model", max_source_positions=1500)
    qcompile(source, recipe={"base": "float", **PLAIN}, output=tmp_path / "out")
    for audio, code, words in (
        (None, Code.USAGE, "reads sound"),
        (tmp_path / "none.wav", Code.NO_FILE, "no such file"),
        (source / "config.json", Code.UNSUPPORTED_INPUT, "cannot be read as sound"),
    ):
        with pytest.raises(QcError, match=words) as caught:
            list(generate.generate(tmp_path / "out", None, audio=audio))
        assert caught.value.diagnostic.code is code


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["weight-int8", {"base": "weight-int8", "encoder": "auto"}])
def test_whisper_tiny_writes_down_a_reading(
    recipe: Any, tmp_path: pathlib.Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_genai")
    monkeypatch.delenv("QC_CHECK", raising=False)  # each pass is checked on small models
    from qcompiler_models import speech
    from qcompiler_models import whisper as tiny

    clip = speech.scored_clips()[0]
    path = save_sound(tmp_path / "clip.wav", clip.samples)
    said = tmp_path / "recipe.json"
    said.write_text(json.dumps(recipe if isinstance(recipe, dict) else {"base": recipe}))
    done = cli("compile", tiny.folder(), "--recipe", said, "-o", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    heard = cli("generate", tmp_path / "out", "--audio", path)
    assert heard.code == 0, heard.err
    assert speech.word_error_rate([clip.text], [heard.out]) <= 0.1


@pytest.mark.slow
def test_rounding_by_sound_and_its_text_beats_rounding_to_nearest() -> None:
    from qcompiler_models import whisper as tiny
    from qcompiler_models.whisper_cached import without_cache

    def score(artifact: Artifact) -> Any:
        assert artifact.encoder is not None
        shapes = {spec.name: spec.shape for spec in input_specs(artifact.model)}
        runs = without_cache(artifact.encoder.run, artifact.run, shapes)
        return tiny.listen(*runs, 12)

    source, feeds = tiny.folder(), tiny.spoken_feeds(16)
    head = {"match": "proj_out", "bits": 8, "algorithm": "rtn"}
    recipe = {
        "weights": {"symmetric": False},
        "rules": [head],
        "encoder": {"base": "dynamic-int8", **PLAIN},
        **PLAIN,
    }
    float_ = score(qcompile(source, "cpu-vnni", {"base": "float", **PLAIN}, check=False))
    nearest = score(qcompile(source, "cpu-vnni", {"base": "w4-rtn", **recipe}, check=False))
    by_data = score(qcompile(source, "cpu-vnni", {"base": "w4-gptq", **recipe}, feeds, check=False))
    assert by_data["nll"] <= nearest["nll"]
    assert by_data["nll"] <= 1.015 * float_["nll"]
    assert by_data["wer"] <= float_["wer"] + 0.02

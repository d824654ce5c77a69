"""Prompts on int8 products and tokens on few bits, in one file that ONNX Runtime GenAI runs."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from decoders import decoder, decoder_feed
from qcompiler import Artifact, qcompile
from qcompiler.export import export_checkpoint
from qcompiler.runtime.inputs import input_specs

pytest.importorskip("transformers")
genai = pytest.importorskip("onnxruntime_genai")

RECIPE = {"base": "weight-int4", "last_logits": True}


def saved(folder: pathlib.Path, prefill: str | None) -> Artifact:
    model = decoder("llama-tied")
    model.generation_config.eos_token_id = None  # so that every run makes as many tokens
    model.config.eos_token_id = None
    return qcompile(model, recipe={**RECIPE, "prefill": prefill}, threads=1, output=folder)


def by_genai(folder: pathlib.Path, prompt: list[int], count: int) -> list[int]:
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=64)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    for _ in range(count):
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def by_session(artifact: Artifact, prompt: list[int], count: int) -> list[int]:
    specs, past, given, length = input_specs(artifact.model), None, prompt, len(prompt)
    made: list[int] = []
    for _ in range(count):
        mask = np.ones((1, length), np.int64)
        past = artifact.run(decoder_feed(np.array([given]), mask, past, specs))
        made.append(int(past["logits"][0, -1].argmax()))
        given, length = made[-1:], length + 1
    return made


@pytest.mark.parametrize("length", [5, 40])
def test_genai_appends_to_the_cache_of_both_branches(length: int, tmp_path: pathlib.Path) -> None:
    artifact = saved(tmp_path / "out", "int8")
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"]
    options = config["model"]["decoder"]["session_options"]
    assert options["graph_optimization_level"] == "ORT_ENABLE_BASIC"
    prompt = np.random.default_rng(1).integers(3, 101, length).tolist()
    assert by_genai(tmp_path / "out", prompt, 12) == by_session(artifact, prompt, 12)


def test_the_kernels_of_single_tokens_are_proven_and_the_file_stays_small(
    tmp_path: pathlib.Path,
) -> None:
    plain, both = saved(tmp_path / "plain", None), saved(tmp_path / "both", "int8")
    proof = both.report.kernels
    assert proof["seen"] == proof["planned"] == plain.report.kernels["planned"]
    assert proof["operators"]["com.microsoft:MatMulIntegerToFloat"] == 10
    weights = sum(tensor.nbytes for tensor in constants(both))
    assert weights < sum(tensor.nbytes for tensor in constants(plain)) + 2048
    assert "If" not in both.report.profile["artifact"], "its time is that of the nodes inside"


@pytest.mark.parametrize("prefill", ["int8", "int8-stored"])
def test_checkpoints_are_those_of_the_same_integers(prefill: str, tmp_path: pathlib.Path) -> None:
    model = decoder("llama-biases")
    model.save_pretrained(tmp_path / "float")
    written = []
    for way in (None, prefill):
        recipe = {**RECIPE, "prefill": way, "verify": {"enabled": False}}
        out = tmp_path / f"checkpoint-{way}"
        export_checkpoint(qcompile(tmp_path / "float", recipe=recipe), tmp_path / "float", out)
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def constants(artifact: Artifact) -> list[object]:
    return [value.const_value for value in artifact.model.graph.initializers.values()]

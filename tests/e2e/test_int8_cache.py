"""Keys and values in int8: numbers, kernels, both branches of prefill, ONNX Runtime GenAI."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("transformers")

import decoders
from qcompiler import Artifact, qcompile
from qcompiler.bench.command import bench_models
from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime.inputs import input_specs
from qcompiler.targets.onnxruntime_cpu import CPU_VNNI
from qcompiler.targets.schema import Target
from qcompiler.verify.again import verify_artifact
from qcompiler.verify.check import Checked
from qcompiler_models import tiny

TEXT = {"own_samples": 16, "length": 32}


def compiled(
    name: str, kv_cache: str | None, target: Target = CPU_VNNI, **more: object
) -> Artifact:
    recipe = {"base": "float", "kv_cache": kv_cache, "text": TEXT, **more}
    model = decoders.decoder(name)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    return qcompile(model, target, recipe, threads=1)


def steps(artifact: Artifact, ids: np.ndarray, first: int) -> tuple[list[np.ndarray], dict]:
    """Logits of a prompt and of each token behind it, and the last outputs."""
    specs, past, logits = input_specs(artifact.model), None, []
    for start, end in [(0, first), *((i, i + 1) for i in range(first, ids.shape[1]))]:
        feed = decoders.decoder_feed(
            ids[:, start:end], np.ones((len(ids), end), np.int64), past, specs
        )
        past = artifact.run(feed)
        logits.append(past["logits"][:, -1])
    return logits, past


@pytest.mark.timed
def test_a_form_that_is_dropped_takes_its_cache_along(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, True, False, False])  # of the quantized form twice, then of float
    monkeypatch.setattr(Checked, "slower_than", lambda *_: next(answers))
    target = dataclasses.replace(CPU_VNNI, costs={})  # without costs everything is quantized
    artifact = compiled("llama", "int8-tensor", base="dynamic-int8", target=target)
    told = {item.code: item.message for item in artifact.report.diagnostics}
    assert "kv_cache with it" in told[Code.MEASURED_SLOWER]
    assert Code.INT8_CACHE not in told
    assert {value.dtype for value in artifact.model.graph.inputs[2:]} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("kind", ["int8-channel", "int8-tensor"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window", "gemma2", "phi3"])
def test_tokens_follow_float_and_the_cache_is_rounded(name: str, kind: str) -> None:
    plain, small = compiled(name, None), compiled(name, kind)
    ids = decoders.tokens(2, 12, seed=4)
    wanted, floats = steps(plain, ids, 6)
    found, cache = steps(small, ids, 6)
    for x, y in zip(wanted, found, strict=True):
        assert np.linalg.norm(x - y) < 0.06 * np.linalg.norm(x - x.mean())
    scales = small.model.graph.initializers
    for output in floats:
        if output == "logits":
            continue
        scale = scales[f"{output}/scale"].const_value.numpy()
        assert cache[output].dtype == np.int8
        assert scale.shape == ((1, *cache[output].shape[1:2], 1, cache[output].shape[3])
                               if kind == "int8-channel" else (1,))  # fmt: skip
        # the first layer's keys and values do not depend on rounded ones
        if ".0." in output:
            exact = np.clip(np.rint(floats[output] / scale), -128, 127)
            assert np.abs(exact - cache[output]).max() <= 1  # sums in another order
    told = next(d for d in small.report.diagnostics if d.code is Code.INT8_CACHE)
    assert told.values["float_bytes"] == 4 * told.values["bytes"]
    assert min(row["cosine"] for row in small.report.fidelity) > 0.99


def test_channels_are_nearer_to_float_than_tensors() -> None:
    def error(kind: str) -> float:
        rows = compiled("llama", kind).report.fidelity
        return float(np.mean([1 - row["cosine"] for row in rows if row["output"] != "logits"]))

    assert error("int8-channel") < error("int8-tensor")


def test_genai_keeps_it_in_both_branches_of_prefill(tmp_path: pathlib.Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    artifact = compiled(
        "llama-tied", "int8-channel", schemes=["weight"], force=True, prefill="int8"
    )
    assert artifact.report.kernels["operators"]["com.microsoft:MatMulIntegerToFloat"] > 0
    artifact.save(tmp_path / "out")
    prompt = decoders.tokens(1, 20, seed=2)
    past, made, given, length = None, [], prompt, 20
    for _ in range(12):
        feed = decoders.decoder_feed(
            given, np.ones((1, length), np.int64), past, input_specs(artifact.model)
        )
        past = artifact.run(feed)
        assert past["present.0.key"].dtype == np.int8
        made.append(int(past["logits"][0, -1].argmax()))
        given, length = np.array([made[-1:]]), length + 1
    parameters = genai.GeneratorParams(model := genai.Model(str(tmp_path / "out")))
    parameters.set_search_options(do_sample=False, max_length=64)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt[0].tolist())
    for _ in range(12):
        generator.generate_next_token()
    assert list(generator.get_sequence(0)[20:]) == made


@pytest.mark.timed
def test_it_is_timed_and_verified_beside_float(tmp_path: pathlib.Path) -> None:
    for kind in (None, "int8-channel"):
        compiled("llama", kind).save(tmp_path / str(kind))
    rows = bench_models(tmp_path / "int8-channel", tmp_path / "None", rounds=1, seconds=0.01)
    assert [row.name for row in rows] == ["None", "int8-channel"]
    report = verify_artifact(
        Artifact.load(tmp_path / "int8-channel"), tmp_path / "None" / "model.onnx", None
    )
    assert min(row["cosine"] for row in report.fidelity) > 0.99
    (tmp_path / "empty").mkdir()
    with pytest.raises(QcError, match=r"no model\.onnx"):
        bench_models(tmp_path / "None", tmp_path / "empty")


def test_padding_does_not_count() -> None:
    ids = decoders.tokens(1, 16, seed=5)
    model = decoders.decoder("llama")
    specs = input_specs(compiled("llama", None).model)

    def scales(rows: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        recipe = {"base": "float", "kv_cache": "int8-channel"}
        feeds = [decoders.decoder_feed(rows, mask, None, specs)]
        graph = qcompile(model, "cpu-vnni", recipe, feeds).model.graph
        return {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if name.startswith("present")
        }

    padded = np.concatenate([ids, np.full((1, 8), 7)], axis=1)
    mask = np.concatenate([np.ones((1, 16), int), np.zeros((1, 8), int)], axis=1)
    short, long = scales(ids, np.ones_like(ids)), scales(padded, mask)
    assert len(short) == 4
    for name, scale in short.items():
        np.testing.assert_allclose(long[name], scale, rtol=1e-5)


def test_what_has_no_such_cache_is_refused() -> None:
    recipe = {"base": "float", "kv_cache": "int8-tensor"}
    with pytest.raises(QcError, match="GroupQueryAttention") as found:
        qcompile(tiny.build("mlp"), "cpu-vnni", recipe, tiny.feeds("mlp", 1))
    assert found.value.code is Code.USAGE
    with pytest.raises(QcError, match="none but float") as found:
        qcompile(decoders.decoder("llama"), "cuda", recipe)
    assert found.value.code is Code.TARGET_CANNOT
    recipe["text"] = {"own_samples": 0}  # type: ignore[assignment]
    with pytest.raises(QcError) as found:
        qcompile(decoders.decoder("llama"), "cpu-vnni", recipe)
    assert found.value.code is Code.NEEDS_CALIBRATION


def test_a_past_is_no_calibration_data() -> None:
    plain = compiled("llama", None)
    specs, ids = input_specs(plain.model), decoders.tokens(1, 4)
    past = plain.run(decoders.decoder_feed(ids, np.ones_like(ids), None, specs))
    feed = decoders.decoder_feed(ids[:, :1], np.ones((1, 5), np.int64), past, specs)
    recipe = {"base": "float", "kv_cache": "int8-tensor"}
    with pytest.raises(QcError, match="whole texts"):
        qcompile(decoders.decoder("llama"), "cpu-vnni", recipe, [feed])
    assert all(value.dtype is not ir.DataType.INT8 for value in plain.model.graph.inputs)

"""Real models: what the artifacts must keep of the float model, and that nothing goes untold.

Speed is measured by ``benchmarks/``, never asserted here: the tests must not hang on the machine.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code
from qcompiler.frontends import open_model
from qcompiler.ir.walk import all_nodes
from qcompiler.plan import Verdict
from qcompiler_models import REAL_MODELS, load_model

pytestmark = pytest.mark.slow

TARGET = "cpu-vnni"  # fixed, as are its costs: the plan is the same on every machine
RECIPES = ("static-int8", "dynamic-int8", "auto", "weight-int8")
NEEDS_DATA = ("static-int8", "auto")
# Calibrated in full; of the others nothing is asked that hangs on the ranges.
SCORED = (
    ("minilm", "static-int8"),
    ("minilm", "auto"),
    ("efficientnet-lite0", "static-int8"),
    ("ppocr-rec", "static-int8"),
    ("ppocr-det", "static-int8"),
)
FEW = 4  # samples


@functools.cache
def calibration(name: str, recipe: str) -> list[Any] | None:
    if recipe not in NEEDS_DATA:
        return None
    return load_model(name).calibration(*(() if (name, recipe) in SCORED else (FEW,)))


@functools.cache
def compiled(name: str, recipe: str, form: str) -> Artifact:
    """Compiled without the guard, which would answer with the float form on a slow machine.

    Steps for accuracy are tried on one model: what fits into their time hangs on the machine.
    """
    options: dict[str, Any] = {"base": recipe, "verify": {"guard": False}}
    if name != "minilm":
        options["auto"] = None
    return qcompile(
        load_model(name).onnx(),
        TARGET,
        options,
        calibration(name, recipe),
        form=form,
        check=False,  # what a user gets; the tiny models hold every pass to its contract
    )


def score(name: str, recipe: str) -> dict[str, float]:
    return load_model(name).score(compiled(name, recipe, "ort").run)


@pytest.mark.parametrize(
    ("recipe", "form", "cosine"),
    [
        ("static-int8", "qdq", 0.99),
        ("auto", "ort", 0.99),
        ("weight-int8", "ort", 0.995),
    ],
)
def test_minilm_embeds_unseen_text_like_float(recipe: str, form: str, cosine: float) -> None:
    assert load_model("minilm").cosine(compiled("minilm", recipe, form).run, 64) >= cosine


@pytest.mark.parametrize(
    ("recipe", "cosine", "points"), [("static-int8", 0.997, 0.5), ("dynamic-int8", 0.995, 1.0)]
)
def test_minilm_finds_verses_as_float_does(recipe: str, cosine: float, points: float) -> None:
    scores = score("minilm", recipe)
    assert scores["cosine_mean"] >= cosine
    assert scores["recall_at_1"] >= scores["reference_recall_at_1"] - points / 100


def test_efficientnet_agrees_with_float_on_pictures_not_used_for_calibration() -> None:
    scores = score("efficientnet-lite0", "static-int8")
    assert scores["agreement"] >= 0.96
    assert scores["kl"] <= 0.007


@pytest.mark.parametrize("name", ["ppocr-rec", "ppocr-det"])
def test_ppocr_reads_as_many_characters_right_as_float(name: str) -> None:
    # 5,166 characters: 0.3 points are 15 of them, and the error of such a count is about 5
    scores = score(name, "static-int8")
    assert scores["character_accuracy"] >= scores["reference_character_accuracy"] - 0.003


def test_rec_by_its_own_recipe_loses_no_tenth_of_a_point() -> None:
    rec = load_model("ppocr-rec")
    artifact = qcompile(rec.onnx(), TARGET, rec.recipe, rec.calibration(), check=False)
    scores = rec.score(artifact.run)
    assert scores["character_accuracy"] >= scores["reference_character_accuracy"] - 0.001


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", REAL_MODELS)
def test_every_node_has_a_verdict_every_float_a_reason_every_kernel_is_seen(
    name: str, recipe: str
) -> None:
    artifact = compiled(name, recipe, "ort")
    nodes = {node.name for node in all_nodes(open_model(load_model(name).onnx()).model)}
    told = {node for item in artifact.plan for node in (item.node, *item.origin)}
    told |= {node for item in artifact.plan.removed for node in (item.node, *item.origin)}
    assert nodes <= told
    assert artifact.report.coverage["unexplained"] == 0
    said = {d.where for d in artifact.report.diagnostics if d.code is Code.KERNEL_NOT_SEEN}
    kernels = artifact.report.kernels.get("kernels", ())
    assert {item["node"] for item in kernels if not item["ok"]} <= said
    planned = {item.node for item in artifact.plan if item.verdict is Verdict.QUANTIZED}
    assert planned == {item["node"] for item in kernels}


@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_static_makes_the_model_less_than_a_third_as_large(name: str) -> None:
    sizes = compiled(name, "static-int8", "ort").report.sizes
    assert sizes["artifact_bytes"] < sizes["float_bytes"] / 3


def test_minilm_without_data_quantizes_and_tells_what_data_would_buy() -> None:
    options = {"base": "auto", "verify": {"enabled": False}}
    artifact = qcompile(load_model("minilm").onnx(), "cpu-amx", options, check=False)
    assert artifact.plan.count()["quantized"] >= 24
    assert any(d.code is Code.CALIBRATION_WOULD_HELP for d in artifact.report.diagnostics)


def test_minilm_from_its_folder_has_the_names_that_users_expect() -> None:
    model = load_model("minilm")
    artifact = qcompile(model.folder(), TARGET, "float", check=False)
    inputs = {value.name for value in artifact.model.graph.inputs}
    assert inputs == {"input_ids", "attention_mask", "token_type_ids"}
    assert any("encoder.layer.3" in item.module for item in artifact.plan)
    feed = model.bench_feeds()["1x32"]
    found, wanted = artifact.run(feed), model.float_run(feed)
    np.testing.assert_allclose(found["last_hidden_state"], wanted["last_hidden_state"], atol=2e-4)


def test_a_torch_module_gives_what_its_onnx_file_gives() -> None:
    model = load_model("efficientnet-lite0")
    module, example = model.torch()
    artifact = qcompile(module, TARGET, "float", example_inputs=example, check=False)
    feed = model.bench_feeds()["b1"]
    (found,), (wanted,) = artifact.run(feed).values(), model.float_run(feed).values()
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_a_saved_real_artifact_loads_and_gives_the_same_numbers(tmp_path: pathlib.Path) -> None:
    artifact = compiled("minilm", "static-int8", "ort")
    loaded = Artifact.load(artifact.save(tmp_path / "out"))
    feed = load_model("minilm").bench_feeds()["1x32"]
    for key, array in artifact.run(feed).items():
        np.testing.assert_array_equal(loaded.run(feed)[key], array)


def test_the_command_line_compiles_and_verifies_a_real_model(
    cli: Callable[..., Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QC_CHECK", raising=False)  # each pass is checked on small models
    model, folder, data = load_model("efficientnet-lite0"), tmp_path / "out", tmp_path / "data"
    data.mkdir()
    for index, feed in enumerate(model.calibration(8)):
        np.savez(data / f"{index}.npz", **feed)
    options = ("--recipe", "static-int8", "--calibration", data, "--target", TARGET)
    said = cli("compile", model.onnx(), *options, "-o", folder, "--json")
    assert said.code == 0, said.err
    assert said.json["target"] == TARGET
    said = cli("verify", folder, "--against", model.onnx(), "--data", data, "--json")
    assert said.code == 0, said.err
    assert min(item["cosine"] for item in said.json["fidelity"]) > 0.98


@pytest.mark.parametrize(
    ("target", "recipe", "cosine"),
    [
        ("tensorrt", "static-fp8", 0.996),
        ("cuda", "static-fp8-e5m2", 0.992),
        ("generic-qdq", "static-a16w8", 0.999),
        ("qnn-htp", "static-a16w8", 0.95),  # its weights have one scale each
    ],
)
def test_other_types_of_activations_keep_minilms_embeddings(
    target: str, recipe: str, cosine: float
) -> None:
    model = load_model("minilm")
    options = {"base": recipe, "verify": {"enabled": False}}
    artifact = qcompile(
        model.onnx(), target, options, calibration("minilm", "static-int8"), check=False
    )
    assert model.cosine(artifact.run, 64) >= cosine


@pytest.mark.parametrize(
    ("target", "recipe", "agreement"),
    [
        ("tensorrt", "static-fp8", 0.82),
        ("qnn-htp", "static-a16w8", 0.96),
    ],
)
def test_other_types_of_activations_keep_efficientnets_labels(
    target: str, recipe: str, agreement: float
) -> None:
    model = load_model("efficientnet-lite0")
    options = {"base": recipe, "verify": {"enabled": False}}
    data = calibration("efficientnet-lite0", "static-int8")
    artifact = qcompile(model.onnx(), target, options, data, check=False)
    assert model.score(artifact.run, limit=128)["agreement"] >= agreement

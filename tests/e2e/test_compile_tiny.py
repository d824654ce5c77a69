"""Every tiny model through every recipe, by the Python API: total, right, explained, repeatable."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code
from qcompiler.frontends import open_model
from qcompiler.ir.walk import all_nodes
from qcompiler.plan import Verdict
from qcompiler.targets.onnxruntime_cpu import CPU_VNNI
from qcompiler.verify.check import Checked
from qcompiler_models import tiny
from qcompiler_models.scores import cosines

# A fixed target and no clock: what these tests see must not hang on the machine. Tiny models are
# too small for int8 to pay, so it is forced.
TARGET = "cpu-vnni"
RECIPES: dict[str, dict[str, Any]] = {
    "auto": {"base": "auto", "verify": {"guard": False}},
    "static": {"base": "static-int8", "force": True},
    "dynamic": {"base": "dynamic-int8", "force": True},
    "weight8": {"base": "weight-int8", "force": True},
    "weight4": {"base": "weight-int4", "force": True},
    "float": {"base": "float"},
}
NEEDS_DATA = ("auto", "static")
LOWEST_COSINE = {"weight4": 0.9}


def compile_tiny(name: str, recipe: str, **options: Any) -> Artifact:
    calibration = tiny.feeds(name, 6) if recipe in NEEDS_DATA else None
    options = {"target": TARGET, "calibration": calibration, **options}
    return qcompile(tiny.build(name), recipe=RECIPES[recipe], **options)


@functools.cache
def float_form(name: str) -> Artifact:
    """Compiled once for all recipes that are compared with it."""
    return compile_tiny(name, "float")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", tiny.MODELS)
def test_outputs_stay_near_float_on_unseen_feeds(name: str, recipe: str) -> None:
    artifact = compile_tiny(name, recipe)
    reference = float_form(name)
    for feed in tiny.feeds(name, 3, seed=7):
        wanted, found = reference.run(feed), artifact.run(feed)
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert found[key].shape == wanted[key].shape
            assert found[key].dtype == wanted[key].dtype
            flat = (found[key].reshape(1, -1), wanted[key].reshape(1, -1))
            assert cosines(*flat)[0] >= LOWEST_COSINE.get(recipe, 0.99)


@pytest.mark.parametrize("form", ["ort", "qdq"])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_node_of_the_user_has_a_verdict_and_every_float_a_reason(
    name: str, form: str
) -> None:
    artifact = compile_tiny(name, "static", form=form)
    nodes = {node.name for node in all_nodes(open_model(tiny.build(name)).model)}
    told = {name for item in artifact.plan for name in (item.node, *item.origin)}
    told |= {name for item in artifact.plan.removed for name in (item.node, *item.origin)}
    assert nodes <= told
    assert artifact.report.coverage["unexplained"] == 0
    assert all(item.reason for item in artifact.plan if item.verdict is Verdict.FLOAT)


@pytest.mark.parametrize("form", ["ort", "qdq"])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_planned_kernel_runs_or_is_reported(name: str, form: str) -> None:
    artifact = compile_tiny(name, "static", form=form)
    said = {d.where for d in artifact.report.diagnostics if d.code is Code.KERNEL_NOT_SEEN}
    kernels = artifact.report.kernels.get("kernels", ())
    assert {item["node"] for item in kernels if not item["ok"]} <= said
    planned = {item.node for item in artifact.plan if item.verdict is Verdict.QUANTIZED}
    assert planned == {item["node"] for item in kernels}


def test_the_own_operators_of_the_runtime_are_all_seen_where_planned() -> None:
    for name in ("mlp", "transformer", "convnet", "residual"):
        kernels = compile_tiny(name, "static", form="ort").report.kernels
        assert kernels["planned"] == kernels["seen"] > 0


@pytest.mark.parametrize("name", ["mlp", "transformer", "convnet"])
def test_a_saved_artifact_loads_and_gives_the_same_numbers(
    name: str, tmp_path: pathlib.Path
) -> None:
    artifact = compile_tiny(name, "static", output=tmp_path / "out")
    loaded = Artifact.load(tmp_path / "out")
    (feed,) = tiny.feeds(name, 1, seed=3)
    for key, array in artifact.run(feed).items():
        np.testing.assert_array_equal(loaded.run(feed)[key], array)
    assert loaded.plan == artifact.plan
    assert loaded.settings == artifact.settings


@pytest.mark.parametrize("recipe", ["static", "dynamic", "weight4"])
@pytest.mark.parametrize("name", ["transformer", "convnet"])
def test_the_same_inputs_give_the_same_bytes(
    name: str, recipe: str, tmp_path: pathlib.Path
) -> None:
    for folder in ("a", "b"):
        compile_tiny(name, recipe, output=tmp_path / folder)
    for file in ("model.onnx", "plan.json", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_model_given_is_not_touched() -> None:
    model = tiny.build("transformer")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    qcompile(model, TARGET, RECIPES["static"], tiny.feeds("transformer", 4))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_plan_from_a_file_is_followed(tmp_path: pathlib.Path) -> None:
    first = compile_tiny("mlp", "static", output=tmp_path / "first")
    again = compile_tiny("mlp", "static", plan=tmp_path / "first" / "plan.json")
    assert dict(again.plan.nodes) == dict(first.plan.nodes)
    assert dict(again.plan.values) == dict(first.plan.values)


def test_an_edited_plan_is_followed(tmp_path: pathlib.Path) -> None:
    compile_tiny("mlp", "static", output=tmp_path / "first")
    plan = json.loads((tmp_path / "first" / "plan.json").read_text())
    quantized = [item for item in plan["nodes"] if item["verdict"] == "quantized"]
    kept = quantized[0]["node"]
    for item in plan["nodes"]:
        if kept in (item["node"], item.get("into")):
            for key in ("kernel", "inputs", "outputs", "into", "gain_us"):
                item.pop(key, None)
            item["verdict"] = "float"
            item["reason"] = {
                "code": "QC106", "where": item["node"], "message": "kept by hand", "values": {}
            }  # fmt: skip
    artifact = compile_tiny("mlp", "static", plan=plan)
    assert artifact.plan.nodes[kept].verdict is Verdict.FLOAT
    operators = artifact.report.kernels["operators"]
    assert operators["com.microsoft:MatMulIntegerToFloat"] == len(quantized) - 1


def test_calibration_comes_as_list_callable_generator_or_folder(tmp_path: pathlib.Path) -> None:
    feeds = tiny.feeds("mlp", 4)
    folder = tmp_path / "feeds"
    folder.mkdir()
    for index, feed in enumerate(feeds):
        np.savez(folder / f"{index}.npz", **feed)
    sources: list[Any] = [
        feeds,
        lambda: iter(feeds),
        (feed for feed in feeds),
        folder,
        [tuple(feed.values()) for feed in feeds],
        [next(iter(feed.values())) for feed in feeds],
    ]
    models = []
    for source in sources:
        artifact = qcompile(tiny.build("mlp"), TARGET, RECIPES["static"], source)
        models.append(ir.to_proto(artifact.model).SerializeToString(deterministic=True))
    assert len(set(models)) == 1


def test_strict_raises_what_else_would_be_reported() -> None:
    artifact = compile_tiny("transformer", "static", strict=True)
    assert not artifact.report.errors


def test_an_artifact_is_recognised_and_not_quantized_twice(tmp_path: pathlib.Path) -> None:
    compile_tiny("mlp", "static", output=tmp_path / "out")
    again = qcompile(tmp_path / "out" / "model.onnx", TARGET, RECIPES["dynamic"])
    assert any(d.code is Code.ALREADY_QUANTIZED for d in again.report.diagnostics)
    (feed,) = tiny.feeds("mlp", 1)
    first = Artifact.load(tmp_path / "out").run(feed)
    for key, array in again.run(feed).items():
        np.testing.assert_allclose(array, first[key], atol=1e-6)


@pytest.mark.timed
def test_what_a_rule_forces_stays_though_it_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checked, "slower_than", lambda *_: True)
    rules = [{"op": "MatMul", "scheme": "dynamic", "force": True}]
    kept = qcompile(tiny.build("mlp"), "cpu-vnni", {"base": "auto", "rules": rules})
    assert kept.plan.count()["quantized"]
    target = dataclasses.replace(CPU_VNNI, costs={})
    dropped = qcompile(tiny.build("mlp"), target, "dynamic-int8")
    assert not dropped.plan.count().get("quantized")

"""Keys that the user gave and that change nothing are told (QC412); those that are read are not."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from qcompiler import Code, qcompile
from qcompiler.pipeline.registry import default_pipeline, pipeline_text
from qcompiler.recipe import Recipe, WeightOptions
from qcompiler.recipe_keys import said_keys
from qcompiler_models import tiny

PLAIN = {"verify": {"enabled": False}}
STATIC = {"base": "static-int8", "force": True, **PLAIN}
RULE = {"match": "matmul_0_node", "scheme": "weight", "bits": 4, "group_size": 16}


def unused(
    recipe: Mapping[str, Any], model: Any = "mlp", *, data: bool = True, **more: Any
) -> list[str]:
    """Where QC412 is said."""
    if isinstance(model, str):
        if data:
            more["calibration"] = tiny.feeds(model, 6)
        model = tiny.build(model)
    report = qcompile(model, "cpu-vnni", recipe, **more).report
    return [item.where for item in report.diagnostics if item.code is Code.KEY_UNUSED]


@pytest.mark.parametrize(
    ("base", "given", "told"),
    [
        # tables of algorithms that round nothing
        ("w4-rtn", {"gptq": {"damp": 0.1}, "teq": {"iters": 3}}, ["gptq.damp", "teq.iters"]),
        ("w4-k-quant", {"rtn": {"norm": 1.0}}, ["rtn.norm"]),
        ("w4-gptq", {"hqq": {"refits": 0}, "rtn": {"search": False}}, ["hqq.refits", "rtn.search"]),
        ("w4-awq", {"autoround": {"iters": 3}}, ["autoround.iters"]),
        ("w4-awq", {"gptq": {"search": False}}, ["gptq.search"]),
        ("w4-awq", {"awq": {"rounding": "gptq", "clip": False}}, ["awq.clip"]),
        ("w4-rtn", {"awq": {"grid": 3, "clip": False}}, ["awq.clip, awq.grid"]),
        ("weight-int8", {"rtn": {"search": False}}, ["rtn.search"]),
        ("w4-k-quant", {"weights": {"symmetric": True}, "bits_choices": [3, 4]}, ["bits_choices"]),
        ("w4-rtn", {"weights": {"format": "nf4", "symmetric": False}}, ["weights.symmetric"]),
        ("weight-int8", {"weights": {"accuracy_level": 1}}, ["weights.accuracy_level"]),
        # weights in few bits where there are none, and activations where they stay float
        ("static-int8", {"weights": {"bits": 4}}, ["weights.bits"]),
        ("dynamic-int8", {"weights": {"algorithm": "gptq"}}, ["weights.algorithm"]),
        ("static-int8", {"gptq": {"damp": 0.1}}, ["gptq.damp"]),
        ("weight-int4", {"activations": "int8"}, ["activations"]),
        ("dynamic-int8", {"calibration": {"method": "minmax"}}, ["calibration.method"]),
        ("weight-int4", {"smoothing": {"alpha": 0.3}}, ["smoothing.alpha"]),
        ("weight-int4", {"weights": {"rounding": "nearest"}}, ["weights.rounding"]),
        ("weight-int4", {"weights": {"rounding": "adaround"}}, []),
        ("static-fp8", {"smoothing": {"alpha": 0.3}}, ["smoothing.alpha"]),
        ("static-int8", {"correct_biases": "empirical"}, ["correct_biases"]),
        # options of what another key has off
        ("static-int8", {"calibration": {"percentile": 99.0}}, ["calibration.percentile"]),
        ("static-int8", {"calibration": {"method": "mse", "bins": 256}}, ["calibration.bins"]),
        ("static-int8", {"smoothing": {"alpha": 0.3, "grid": [0.1]}}, ["smoothing.grid"]),
        ("static-int8", {"drop": "absolute"}, ["drop"]),
        ("static-int8", {"verify": {"max_slowdown": 0.5}}, ["verify.max_slowdown"]),
        # a recipe that quantizes nothing
        ("float", {"sensitivity": True}, ["force", "sensitivity"]),
        ("float", {"keep_float": 2}, ["force", "keep_float"]),
        # keys for other models
        ("static-int8", {"encoder": "float"}, ["encoder"]),
        ("static-int8", {"text": {"length": 64}}, ["text.length"]),
        ("static-int8", {"quantized": {"strip": True}}, ["quantized.strip"]),
    ],
)
def test_what_changes_nothing_is_told(base: str, given: dict[str, Any], told: list[str]) -> None:
    assert unused({"base": base, **PLAIN, "force": True, **given}) == told


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ({"base": "w4-autoround-best", **PLAIN, "weights": {"algorithm": "rtn"}}, "mlp"),
        ({"base": "w4-rtn", **PLAIN, "gptq": {"damp": 0.1}, "rules": [
            {"match": "matmul_0_node", "algorithm": "gptq"}]}, "mlp"),
        ({**STATIC, "weights": {"symmetric": False}, "rtn": {"norm": 1.5}, "rules": [RULE]}, "mlp"),
        ({**STATIC, "hqq": {"norm": 1.5}, "rules": [{**RULE, "algorithm": "hqq"}]}, "mlp"),
        ({"base": "w4-awq", **PLAIN, "awq": {"rounding": "gptq"}, "gptq": {"damp": 0.1}}, "mlp"),
        ({"base": "w4-awq", **PLAIN, "awq": {"clip": False}, "rtn": {"norm": 1.5}}, "mlp"),
        ({"base": "w4-gptq", **PLAIN, "bits_budget": 14.0, "bits_choices": [4, 8],
          "rtn": {"norm": 1.5}}, "mlp"),
        ({"base": "w4-autoround", **PLAIN, "awq": {"grid": 3}, "autoround": {"iters": 1},
          "rtn": {"norm": 1.5}}, "transformer"),
        ({"base": "w4-teq", **PLAIN, "teq": {"iters": 1}, "rtn": {"norm": 1.5}}, "transformer"),
        ({**STATIC, "calibration": {"method": "percentile", "percentile": 99.0}},
         "mlp"),
        ({**STATIC, "smoothing": {"grid": [0.3]}, "weights": {"rounding": "nearest"}}, "mlp"),
        ({**STATIC, "correct_biases": "empirical"}, "convnet"),
        # who switches off has what was wanted
        ({"base": "weight-int4", **PLAIN, "correct_biases": False, "smoothing": {"alpha": None},
          "embeddings": False, "equalize_gates": False}, "mlp"),
    ],
)  # fmt: skip
def test_what_is_read_is_not_told(recipe: dict[str, Any], model: str) -> None:
    assert unused(recipe, model) == []


def test_smoothing_without_linear_layers_is_told() -> None:
    assert unused({**STATIC, "smoothing": {"alpha": 0.5}}, "residual") == ["smoothing.alpha"]


def test_a_model_that_comes_quantized_reads_few_keys() -> None:
    model = qcompile(tiny.mlp(), "cpu-vnni", STATIC, tiny.feeds("mlp"), form="qdq").model
    given = {"bits_budget": 5.0, "weights": {"bits": 2}, "calibration": {"method": "mse"}}
    assert unused({**STATIC, **given}, model) == ["bits_budget, calibration.method, weights.bits"]
    assert unused({**STATIC, "quantized": {"strip": True}}, model) == ["quantized.strip"]
    rules = [{"match": "*", "scheme": "float"}, {"match": "*", "bits": 4}]
    assert unused({**STATIC, "rules": rules, "schemes": ["token"]}, model) == [
        "schemes",
        "rules[1]",
    ]
    assert unused({"base": "float", **PLAIN}, model) == []


def test_options_of_data_are_told_where_there_are_none() -> None:
    given = {"calibration": {"max_samples": 2, "method": "mse"}, "auto": {"seconds": 1.0}}
    told = unused({"base": "dynamic-int8", "verify": {"feeds": 2}, **given}, data=False)
    assert told == ["auto, calibration.max_samples, verify.feeds", "calibration.method"]


def test_a_plan_of_another_recipe_decides() -> None:
    plan = qcompile(tiny.mlp(), "cpu-vnni", STATIC, tiny.feeds("mlp")).plan
    again = {**STATIC, "activations": "int8"}
    assert unused(again, plan=plan) == []
    assert unused({**again, "name": "mine"}, plan=plan) == ["activations"]
    assert unused({**STATIC, "bits_budget": 5.0}, plan=plan) == ["bits_budget"]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"scheme": "float"}, ["rules[0]"]),
        ({"scheme": "static"}, []),
        ({"scheme": "dynamic"}, ["rules[0]"]),
        ({"kernel": "matmul-token"}, ["rules[0]"]),
    ],
)
def test_rules_that_a_given_plan_does_not_follow_are_told(
    rule: dict[str, Any], told: list[str]
) -> None:
    plan = qcompile(tiny.mlp(), "cpu-vnni", STATIC, tiny.feeds("mlp")).plan
    assert unused({**STATIC, "rules": [{"match": "matmul_0_node", **rule}]}, plan=plan) == told


def test_options_of_passes_that_do_not_run_are_told() -> None:
    left_out = ("allot-bits", "smooth-activations")
    pipeline = pipeline_text(item for item in default_pipeline() if item.name not in left_out)
    given = {"pipeline": pipeline, "smoothing": {"alpha": 0.3}}
    assert unused({**STATIC, **given}) == ["smoothing.alpha"]
    assert unused({"base": "w4-rtn", **PLAIN, **given, "bits_budget": 20.0}) == [
        "bits_budget",
        "smoothing.alpha",
    ]


def test_work_is_told_where_nothing_takes_long(tmp_path: pathlib.Path) -> None:
    assert unused({"base": "w4-rtn", **PLAIN}, work=tmp_path) == ["work"]
    assert unused({"base": "w4-gptq", **PLAIN}, work=tmp_path) == []


def test_example_inputs_of_a_graph_are_told() -> None:
    assert unused({"base": "w4-rtn", **PLAIN}, example_inputs=()) == ["example_inputs"]


@pytest.mark.parametrize(("key", "how"), [("equalize_layers", True), ("absorb_biases", True)])
def test_steps_between_layers_are_told_where_there_are_no_pairs(key: str, how: bool) -> None:
    assert unused({**STATIC, key: how}, "encoder") == [key]
    assert unused({**STATIC, key: how}, "mlp") == []
    dynamic = {"base": "dynamic-int8", **PLAIN, key: how}
    assert unused(dynamic, "mlp", data=False) == ([key] if key == "absorb_biases" else [])


def test_layers_are_compared_without_data_and_without_verifying() -> None:
    recipe = {"base": "w4-rtn", "verify": {"enabled": False, "layers": True}}
    assert qcompile(tiny.mlp(), "cpu-vnni", recipe).report.layers


def test_text_is_told_by_what_is_calibrated_on() -> None:
    model = tiny.build("encoder")
    model.graph.inputs[0].name = "input_ids"
    recipe = {"base": "w4-gptq", **PLAIN, "text": {"samples": 4, "length": 8, "own_samples": 2}}
    tokens = np.random.default_rng(0).integers(0, 50, (4, 8))
    assert unused(recipe, model, calibration=tokens) == ["text.own_samples"]
    feeds = [{"input_ids": tokens}]
    told = ["text.length", "text.own_samples", "text.samples"]
    assert sorted(unused(recipe, model, calibration=feeds)) == told


def test_keys_of_the_base_are_not_the_users() -> None:
    assert list(said_keys(Recipe.of("w4-autoround-best"))) == []
    given = {"base": "w4-gptq", "weights": {"bits": 3}, "gptq": {"damp": 0.01}}
    assert list(said_keys(Recipe.of(given))) == ["weights.bits"]
    changed = Recipe.of(given).changed(max_drop=0.1, verify={"feeds": 1})
    assert list(said_keys(changed)) == ["max_drop", "verify.feeds", "weights.bits"]
    made = Recipe(weights=WeightOptions(double_quant={}))
    assert list(said_keys(made)) == ["weights.double_quant"]

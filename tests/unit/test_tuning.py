"""``auto`` tries the steps for accuracy, keeps those that help, and says what each bought."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from qcompiler import Artifact, qcompile
from qcompiler.calibration.feeds import open_feeds
from qcompiler.cli.app import app
from qcompiler.diagnostics import Code, QcError
from qcompiler.recipe import Recipe
from qcompiler.report.page import report_page
from qcompiler.runtime.inputs import input_specs
from qcompiler.tuning import search
from qcompiler.tuning.steps import STEPS, plain, value_of
from qcompiler_models import tiny

TARGET = "cpu-vnni"
LEARNED = "rounding learned (AdaRound)"


def compiled(name: str = "residual", feeds: Any = None, **changes: Any) -> Artifact:
    recipe = {"base": "auto", "force": True, "verify": {"enabled": False}, **changes}
    data = tiny.feeds(name, 8) if feeds is None else feeds
    return qcompile(tiny.build(name), TARGET, recipe, data)


def rows(artifact: Artifact) -> dict[str, Any]:
    return {item["step"]: item for item in artifact.report.steps}


def codes(artifact: Artifact) -> set[Code]:
    return {item.code for item in artifact.report.diagnostics}


def test_each_step_starts_where_the_last_kept_one_ended() -> None:
    found = list(compiled().report.steps)
    assert [item["step"] for item in found] == ["none", *(step.name for step in STEPS)]
    now = found[0]["after"]
    assert found[0]["before"] is None
    assert found[0]["kept"] is None
    for item in found[1:]:
        if item["after"] is None:
            assert not item["kept"]
            continue
        assert item["before"] == now
        helps = 1 - item["after"] < (1 - search._HELPS) * (1 - now)
        assert item["kept"] is helps
        now = item["after"] if helps else now
    assert sum(bool(item["kept"]) for item in found) >= 1


def test_what_was_kept_is_what_the_artifact_is_made_by() -> None:
    found = compiled(weights={"granularity": "tensor"}, correct_biases=False)
    recipe, free = plain(Recipe.of({"base": "auto", "correct_biases": False}))
    assert "correct_biases" not in {step.key for step in free}  # the user's word stands
    assert {step.name for step in free} == rows(found).keys() - {"none"}
    for step in free:
        recipe = step.applied(recipe) if rows(found)[step.name]["kept"] else recipe
    made_by = Recipe(**found.manifest["recipe"])
    for step in STEPS:
        assert value_of(made_by, step.key) == value_of(recipe, step.key)


def test_steps_that_time_does_not_suffice_for_stay_as_by_default() -> None:
    found = compiled(auto={"seconds": 1e-9})
    assert found.report.steps
    for item in found.report.steps:
        assert item["after"] is None
        assert "not tried" in item["why"]
    (said,) = (item for item in found.report.diagnostics if item.code is Code.STEPS_CUT)
    assert said.values["steps"] == [step.name for step in STEPS]
    default = Recipe.of("auto")
    kept = {key: found.manifest["recipe"][key] for key in ("smoothing", "correct_biases")}
    assert kept["correct_biases"] == default.correct_biases
    assert kept["smoothing"]["alpha"] == default.smoothing.alpha
    assert found.manifest["recipe"]["weights"]["rounding"] == default.weights.rounding


def test_a_long_step_is_cut_and_the_short_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 10_000, 1))
    monkeypatch.setattr(search.tune, "__defaults__", (None, lambda: float(next(times))))
    found = compiled(auto={"seconds": 25.0})
    tried = [name for name, item in rows(found).items() if item["after"] is not None]
    assert tried[0] == "none"
    assert 2 <= len(tried) < len(STEPS)
    assert Code.STEPS_CUT in codes(found)
    assert "not tried" in rows(found)[LEARNED]["why"]


def test_without_data_that_can_be_held_out_nothing_is_tried() -> None:
    def once() -> Iterator[Any]:
        yield from tiny.feeds("residual", 8)

    for data in (once(), tiny.feeds("residual", 1)):
        found = compiled(feeds=data)
        assert not found.report.steps
        assert Code.STEPS_UNTRIED in codes(found)


def test_where_nothing_is_quantized_no_step_is_tried_and_that_is_told() -> None:
    found = compiled(force=False, rules=[{"match": "*", "scheme": "float"}])
    assert not found.plan.count().get("quantized")
    assert not found.report.steps
    (said,) = (x for x in found.report.diagnostics if x.code is Code.STEPS_UNTRIED)
    assert "nothing is quantized" in said.message
    assert "explain" in said.hint


def test_with_a_plan_no_step_is_tried_and_that_is_told() -> None:
    model, data = tiny.build("residual"), tiny.feeds("residual", 8)
    plan = compiled(base="static-int8").plan
    found = qcompile(model, TARGET, "auto", data, plan=plan)
    assert not found.report.steps
    (said,) = (x for x in found.report.diagnostics if x.code is Code.STEPS_UNTRIED)
    assert "a plan was given" in said.message


def test_other_recipes_try_nothing_unless_asked() -> None:
    plainly = {"base": "static-int8", "force": True, "verify": {"enabled": False}}
    data = tiny.feeds("residual", 8)
    model = tiny.build("residual")
    assert not qcompile(model.clone(), TARGET, plainly, data).report.steps
    asked = qcompile(model, TARGET, {**plainly, "auto": {"seconds": 5}}, data)
    assert asked.report.steps


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "long", None])
def test_a_budget_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(QcError) as error:
        compiled(auto={"seconds": seconds})
    assert error.value.code is Code.RECIPE_KEY
    assert "auto.seconds" in str(error.value)


def test_the_report_holds_the_table(tmp_path: pathlib.Path) -> None:
    found = compiled(auto={"seconds": 30})
    found.save(tmp_path / "out")
    again = Artifact.load(tmp_path / "out")
    assert again.report.steps == found.report.steps
    assert "step for accuracy" in str(again.report)
    page = report_page(again.report, again.plan)
    assert 'id="steps"' in page
    assert all(step.name in page for step in STEPS)


def test_the_command_line_says_the_same(tmp_path: pathlib.Path) -> None:
    import numpy as np
    import onnx_ir as ir

    ir.save(tiny.build("residual"), tmp_path / "m.onnx")
    for index, feed in enumerate(tiny.feeds("residual", 4)):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{index}.npz", **feed)
    recipe = tmp_path / "r.json"
    arguments = ["compile", str(tmp_path / "m.onnx"), "--target", TARGET, "--recipe", str(recipe)]
    arguments += ["--calibration", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--json"]
    recipe.write_text(json.dumps({"base": "auto", "force": True, "auto": {"seconds": 20}}))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"][0]["step"] == "none"
    recipe.write_text(json.dumps({"base": "auto", "auto": {"seconds": -3}}))
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, QcError)
    assert refused.exception.code is Code.RECIPE_KEY


def test_plain_turns_everything_off_but_what_the_user_set() -> None:
    recipe, free = plain(Recipe.of({"base": "auto", "smoothing": {"alpha": 0.5}}))
    assert recipe.smoothing.alpha == 0.5
    assert recipe.weights.rounding == "nearest"
    assert recipe.correct_biases is False
    assert "smoothing" not in {step.name for step in free}


@pytest.mark.parametrize(("count", "held_out"), [(2, [1]), (3, [2]), (4, [3]), (9, [3, 7])])
def test_data_are_split_into_what_is_fitted_and_what_judges(
    count: int, held_out: list[int]
) -> None:
    given = tiny.feeds("mlp", count)
    parts = open_feeds(given, input_specs(tiny.build("mlp"))).split(4)
    assert parts is not None
    name = next(iter(given[0]))
    found = [[x[name].tobytes() for x in part] for part in parts]
    wanted = [x[name].tobytes() for x in given]
    assert found[1] == [wanted[i] for i in held_out]
    assert found[0] == [x for i, x in enumerate(wanted) if i not in held_out]
    assert [part.count_hint for part in parts] == [len(x) for x in found]

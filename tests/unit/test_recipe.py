from __future__ import annotations

import inspect
import pathlib

import pydantic
import pytest

from qcompiler import qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler.recipe import RECIPES, Recipe
from qcompiler.recipe_keys import NAMES_ELSEWHERE
from qcompiler.targets.schema import Scheme


def test_none_is_the_auto_recipe() -> None:
    assert Recipe.of(None) is RECIPES["auto"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_built_in_recipe_goes_through_json_unchanged(name: str) -> None:
    recipe = RECIPES[name]
    assert Recipe.of(recipe.model_dump(mode="json")) == recipe


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(QcError, match="static-int8") as error:
        Recipe.of("statc-int8")
    assert error.value.code is Code.UNKNOWN_RECIPE


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"shemes": ["static"]}, "schemes"),
        ({"calibration": {"metod": "mse"}}, "method"),
        ({"rules": [{"mach": "*"}]}, "match"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(data: dict, hint: str) -> None:
    with pytest.raises(QcError, match=f"did you mean '{hint}'") as error:
        Recipe.of(data)
    assert error.value.code is Code.RECIPE_KEY


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"double_quant": {}}, "'double_quant' is a key of weights"),
        ({"weights": {"samples": 8}}, "'samples' is a key of text"),
        ({"gptq": {"seed": 1}}, "'seed' is a key of the recipe itself or text"),
        ({"weights": {"double_quant": {"bitz": 8}}}, "did you mean 'bits'"),
    ],
)
def test_a_key_in_the_wrong_table_is_answered_with_the_right_one(data: dict, hint: str) -> None:
    with pytest.raises(QcError, match=hint) as error:
        Recipe.of(data)
    assert error.value.code is Code.RECIPE_KEY


def test_a_key_of_another_tool_is_answered_with_ours() -> None:
    with pytest.raises(QcError, match=r"other tools call 'nsamples' is text\.samples here"):
        Recipe.of({"calibration": {"nsamples": 8}})


@pytest.mark.parametrize("name", NAMES_ELSEWHERE)
def test_names_of_other_tools_are_none_of_ours_and_lead_to_one(name: str) -> None:
    ours = NAMES_ELSEWHERE[name]
    if ours.startswith("the argument "):
        assert ours.removeprefix("the argument ") in inspect.signature(qcompile).parameters
        return
    found: type[pydantic.BaseModel] = Recipe
    *tables, key = ours.split(".")
    for table in tables:
        found = type(found.model_fields[table].default)
    assert key in found.model_fields
    assert name not in found.model_fields


@pytest.mark.parametrize(
    "data",
    [
        {"calibration": {"method": "magic"}},
        {"calibration": {"percentile": 101}},
        {"weights": {"bits": 9}},
        {"weights": {"group_size": 0}},
        {"weights": {"group_size": -2}},
        {"weights": {"algorithm": "magic"}},
        {"weights": {"format": "fp3"}},
        {"weights": {"format": "nf4", "bits": 3}},
        {"weights": {"zero_point": "float"}},
        {"rules": [{"zero_point": "float", "symmetric": True}]},
        {"weights": {"zero_point": "float", "symmetric": False, "algorithm": "gptq"}},
        {"rules": [{"zero_point": "float", "algorithm": "awq"}]},
        {"bits_choices": []},
        {"weights": {"algorithm": "autoround", "format": "nf4", "bits": 4}},
        {"weights": {"algorithm": "autoround", "double_quant": {"bits": 8}}},
        {"schemes": ["fp3"]},
        {"seed": "x"},
        {"seed": -1},
        {"text": {"seed": 2**32}},
        {"smoothing": {"alpha": 1.2}},
        {"smoothing": {"alpha": -0.1}},
        {"smoothing": {"alpha": float("nan")}},
        {"smoothing": {"alpha": True}},
        {"smoothing": {"alpha": "best"}},
        {"smoothing": {"grid": [0.5, 2.0]}},
        {"smoothing": {"grid": []}},
        {"smoothing": {"criterion": "model"}},
    ],
)
def test_a_bad_value_is_refused_naming_the_key(data: dict) -> None:
    with pytest.raises(QcError) as error:
        Recipe.of(data)
    assert error.value.code is Code.RECIPE_KEY
    assert next(iter(data)) in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"bits_budget": 4.0, "megabytes_budget": 1.0}, "give bits_budget or megabytes_budget"),
        ({"weights": {"format": "nf4", "bits": 3}}, "weights: nf4 has codes of 4 bits"),
        ({"rules": [{"zero_point": "float", "symmetric": True}]}, "rules.0: float zero points"),
    ],
)
def test_keys_that_do_not_go_together_are_named_without_the_rest(data: dict, said: str) -> None:
    with pytest.raises(QcError, match=said) as error:
        Recipe.of({"base": "weight-int4", **data})
    assert "{" not in error.value.diagnostic.message


def test_a_base_recipe_is_overridden_key_by_key() -> None:
    recipe = Recipe.of({"base": "static-int8", "calibration": {"method": "minmax"}})
    assert recipe.schemes == (Scheme.STATIC,)
    assert recipe.calibration.method == "minmax"
    assert recipe.calibration.bins == RECIPES["static-int8"].calibration.bins


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".toml", 'base = "auto"\n[[rules]]\nmatch = "*head*"\nscheme = "float"\n'),
        (".yaml", "base: auto\nrules:\n  - {match: '*head*', scheme: float}\n"),
        (".json", '{"base": "auto", "rules": [{"match": "*head*", "scheme": "float"}]}'),
    ],
)
def test_files_of_each_kind_read_alike(tmp_path: pathlib.Path, suffix: str, text: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    path.write_text(text)
    rule = Recipe.of(path).rules[0]
    assert (rule.match, rule.scheme) == ("*head*", "float")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".toml", "a = ["),
        (".yaml", "a: [b"),
        (".json", "{"),
        (".yaml", "- 1"),
        (".yaml", "base: auto\nbase: float\n"),
    ],
)
def test_a_file_that_does_not_parse_is_refused(
    tmp_path: pathlib.Path, suffix: str, text: str
) -> None:
    path = tmp_path / f"recipe{suffix}"
    path.write_text(text)
    with pytest.raises(QcError) as error:
        Recipe.of(path)
    assert error.value.code is Code.RECIPE_KEY


def test_yaml_does_not_make_objects(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(QcError):
        Recipe.of(path)


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(QcError, match=r"nowhere\.toml"):
        Recipe.of(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"correct_biases": "foo"}, "correct_biases = 'foo': .*boolean.*, or .*'empirical'"),
        ({"absorb_biases": "foo"}, "absorb_biases = 'foo': .*boolean.*, or .*'deviation'"),
        ({"smoothing": 0.5}, "smoothing = 0.5: wanted a table of the keys alpha, "),
        ({"auto": True}, "auto = True: wanted a table of the keys seconds"),
    ],
)
def test_a_value_of_no_type_that_a_key_has_is_told_them_all(given: dict, said: str) -> None:
    with pytest.raises(QcError, match=said):
        Recipe.of(given)

"""The docs say what the code does: generated pages are current, examples run, links hold."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import types

import pytest

from qcompiler.diagnostics import Code
from qcompiler.recipe import (
    RECIPES,
    CalibrationOptions,
    Recipe,
    Rule,
    VerifyOptions,
    WeightOptions,
)
from qcompiler.remedies import REMEDIES

ROOT = pathlib.Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
_RUNNABLE = re.compile(r"^```python runnable\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.fixture(scope="module")
def generate() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: types.ModuleType) -> None:
    stale = [
        path.name
        for path, text in generate.pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `make docs`"


@pytest.mark.parametrize("code", Code, ids=lambda code: code.id)
def test_every_code_has_a_section_with_what_to_do(code: Code) -> None:
    page = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    assert f"### {code.id} " in page
    assert REMEDIES[code] in page


def test_every_code_is_given_somewhere() -> None:
    own = {"codes.py", "remedies.py", "next_steps.py"}  # which only speak about codes
    source = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("qcompiler", "passes/qcompiler_passes")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in own
    )
    unused = [code.name for code in Code if not re.search(rf"\bCode\.{code.name}\b", source)]
    assert not unused


def test_code_ids_are_unique_and_in_their_family() -> None:
    ids = [code.id for code in Code]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"QC[1-79]\d\d", text) for text in ids)


@pytest.mark.parametrize("model", [Recipe, Rule, CalibrationOptions, WeightOptions, VerifyOptions])
def test_every_key_of_a_recipe_is_told(model: type) -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    missing = [key for key in model.model_fields if f"`{key}`" not in page]  # type: ignore[attr-defined]
    assert not missing


def test_every_built_in_recipe_is_told() -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert not [name for name in RECIPES if f"`{name}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = [link for link in _LINK.findall(text) if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_marked_runnable_run(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run in order, in one namespace, in an empty folder."""
    blocks = _RUNNABLE.findall(page.read_text(encoding="utf-8"))
    if not blocks:
        pytest.skip("no runnable example")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), space)

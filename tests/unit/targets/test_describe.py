"""The generated page of a target."""

import pathlib

import pytest

from qcompiler.targets.describe import describe
from qcompiler.targets.registry import load_target, target_names

PAGES = pathlib.Path(__file__).parents[3] / "docs" / "targets"
NAMES = [name for name in target_names() if name != "cpu"]


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_current(name):
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert text == describe(load_target(name)) + "\n", "run `make docs`"


@pytest.mark.parametrize("name", NAMES)
def test_every_row_stands_in_the_page_with_its_source(name):
    target, page = load_target(name), describe(load_target(name))
    for row in target.kernels:
        line = next(line for line in page.splitlines() if line.startswith(f"| `{row.id}` |"))
        assert row.source in line
    for trap in target.traps:
        assert f"| `{trap.id}` |" in page


def test_costs_are_shown_as_speed_ups():
    page = describe(load_target("cpu-vnni"))
    assert "| 1024 x 1024 x 1024 | `matmul-static` |" in page
    assert "## Costs" not in describe(load_target("tensorrt"))

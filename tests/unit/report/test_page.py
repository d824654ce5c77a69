from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import pathlib
import re

import numpy as np
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.plan import Plan
from qcompiler.report.charts import chart_data, finite
from qcompiler.report.model import Report
from qcompiler.report.page import _code, report_page, write_page
from qcompiler.verify.fidelity import OutputFidelity

_VOID = {"meta", "input", "br", "img", "link"}
_LOADS = {"src", "srcset", "data", "poster", "action", "formaction", "background", "ping"}


class Page(html.parser.HTMLParser):
    """Reads a page strictly: each element that opens closes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        table = {key: value or "" for key, value in attrs}
        self.elements.append((tag, table))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((table, ""))
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.open and self.open[-1] == "style":
            self.styles[-1] += data
        else:
            self.text += data

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


@pytest.fixture
def page(report: Report, plan: Plan) -> Page:
    return Page(report_page(report, plan))


def test_elements_are_balanced_and_ids_are_unique(page: Page) -> None:
    assert len(page.ids()) == len(set(page.ids()))
    assert [tag for tag, _ in page.elements].count("main") == 1


def test_names_from_the_model_stay_text(page: Page) -> None:
    assert "</script><script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]
    handlers = {key for _, attributes in page.elements for key in attributes if key[:2] == "on"}
    assert handlers == set()


def test_the_scripts_are_ours_alone(page: Page) -> None:
    executed = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(executed) == 3
    assert not [text for text in executed if "alert(" in text]


def test_the_policy_allows_these_scripts_and_styles_and_no_request(page: Page) -> None:
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy
    executed = [text for attributes, text in page.scripts if "type" not in attributes]
    for text in [*executed, *page.styles]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    # the policy would refuse these silently
    assert not [attributes for _, attributes in page.elements if "style" in attributes]


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert not _LOADS & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    for style in page.styles:
        assert "url(" not in style
        assert "@import" not in style


def test_links_lead_somewhere(page: Page) -> None:
    targets = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    assert "QC105" in targets
    assert targets <= set(page.ids())


def test_controls_have_names(report: Report, plan: Plan, page: Page) -> None:
    labelled = re.findall(r"<label[^>]*>[^<]+<(?:input|select)", report_page(report, plan))
    fields = [tag for tag, _ in page.elements if tag in ("input", "select")]
    assert len(labelled) == len(fields)
    for tag, attributes in page.elements:
        if tag == "canvas":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_every_planned_and_removed_node_has_a_row(page: Page, plan: Plan) -> None:
    rows = [attributes for tag, attributes in page.elements if "data-verdict" in attributes]
    assert len(rows) == len(plan.nodes) + len(plan.removed)
    hidden = [row["data-verdict"] for row in rows if "hidden" in row]
    assert hidden == ["removed"]


def test_codes_are_explained_on_the_page(page: Page) -> None:
    for code in (Code.DOES_NOT_PAY, Code.NO_KERNEL, Code.LOW_FIDELITY):
        assert code.id in page.ids()
        assert code.explanation in page.text


def test_the_data_of_the_charts_reads_as_json(page: Page, report: Report, plan: Plan) -> None:
    [text] = [text for attributes, text in page.scripts if attributes.get("id") == "data"]
    assert json.loads(text) == json.loads(json.dumps(chart_data(report, plan)))
    assert "<" not in text


def test_sections_without_data_are_not_there(plan: Plan) -> None:
    bare = Report({"name": "m"}, "cpu", "float", "ort")
    ids = Page(report_page(bare, plan)).ids()
    assert not {"layers", "activations", "weights", "timeline"} & set(ids)
    assert "chart-gain" in ids  # nothing was measured: the plan's predictions are shown
    assert "chart-latency" not in ids
    assert {"next", "nodes", "diagnostics"} <= set(ids)


def test_sections_with_data_are_there(page: Page) -> None:
    wanted = {"layers", "activations", "weights", "timeline", "chart-latency", "chart-error"}
    assert wanted <= set(page.ids())


def test_a_report_read_from_its_file_gives_the_same_page(report: Report, plan: Plan) -> None:
    read = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert report_page(read, plan) == report_page(report, plan)


def test_infinite_errors_do_not_break_the_page(report: Report, plan: Plan) -> None:
    broken = {"output": "y", "cosine": 0.0, "sqnr_db": None, "max_abs": float("inf"),
              "finite": False, "feeds": 1}  # fmt: skip
    layers = ({"node": "first", "sqnr_db": float("-inf"), "sensitivity": float("nan")},)
    page = Page(report_page(dataclasses.replace(report, fidelity=(broken,), layers=layers), plan))
    [text] = [text for attributes, text in page.scripts if attributes.get("id") == "data"]
    assert json.loads(text)["error"]["sqnr"] == [None]
    assert finite({"a": [float("nan"), 1.0]}) == {"a": [None, 1.0]}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            OutputFidelity("y", 0.0, -np.inf, np.inf, False, 1, unlike="found 2, wanted 3"),
            "found 2",
        ),
        (OutputFidelity("y", 0.0, -np.inf, 0.0, True, 1, compared=False), "no number to compare"),
        (OutputFidelity("y", 0.0, -np.inf, 0.5, True, 1), "float gives zeros"),
    ],
)
def test_outputs_that_cannot_be_compared_are_not_called_equal(
    report: Report, plan: Plan, item: OutputFidelity, said: str
) -> None:
    fidelity = (item.to_dict(), OutputFidelity("z", 1.0, np.inf, 0.0, True, 1).to_dict())
    text = report_page(dataclasses.replace(report, fidelity=fidelity), plan)
    assert said in text
    assert "equal to float" not in text
    assert text.count(">exact<") == 1


def test_the_page_of_a_small_model_is_small(report: Report, plan: Plan) -> None:
    assert len(report_page(report, plan)) < 300_000


def test_writing_replaces_the_file_and_leaves_nothing_beside(
    report: Report, plan: Plan, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "deep" / "page.html"
    write_page(report, plan, path)
    write_page(report, plan, path)
    assert [item.name for item in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["", "file/page.html"])
def test_a_place_that_cannot_be_written_is_told(
    report: Report, plan: Plan, tmp_path: pathlib.Path, name: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(QcError) as error:
        write_page(report, plan, tmp_path / name)
    assert error.value.code is Code.NOT_WRITABLE


def test_backticks_become_code_and_everything_is_escaped() -> None:
    assert _code("a `b < c` & `d") == "a <code>b &lt; c</code> &amp; <code>d</code>"
    assert _code("plain") == "plain"

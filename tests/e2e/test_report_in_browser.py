"""The report page in a real browser: it opens from disk, asks for nothing, filters and sorts."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qcompiler import qcompile
from qcompiler.report.page import PAGE, write_page
from qcompiler_models import tiny

_BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
_DRIVER = shutil.which("chromedriver") or ""
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1440,900",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _BROWSER, reason="no chromium is installed"),
    pytest.mark.skipif(not _DRIVER, reason="no chromedriver is installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("selenium") is None, reason="selenium is not installed"
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for argument in (*_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The page of a tiny model that was really compiled, with every section."""
    recipe = {"base": "static-int8", "force": True, "verify": {"guard": False}}
    artifact = qcompile(tiny.build("convnet"), "cpu", recipe, list(tiny.feeds("convnet", 4)))
    return artifact.save(tmp_path_factory.mktemp("out") / "artifact") / PAGE


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A page full of names that try to break out of it."""
    path = pathlib.Path(__file__).parents[1] / "unit" / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_examples", path)
    assert spec is not None
    assert spec.loader is not None
    examples = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = examples
    spec.loader.exec_module(examples)
    plan = examples.a_plan()
    return write_page(examples.a_report(plan), plan, tmp_path_factory.mktemp("hostile") / PAGE)


def visit(browser: Any, page: pathlib.Path, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    time.sleep(0.3)


def requests(browser: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def shown(browser: Any, column: int = 2) -> list[str]:
    """Texts of a column (from 1) of the rows that are to be seen."""
    script = """
        return [...document.querySelectorAll("#table tbody tr")].filter((row) => !row.hidden)
            .map((row) => row.cells[arguments[0] - 1].textContent.trim())
    """
    found: list[str] = browser.execute_script(script, column)
    return found


def put(browser: Any, control: str, text: str) -> None:
    browser.execute_script(
        "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
        "it.dispatchEvent(new Event('input', {bubbles: true}))",
        control,
        text,
    )


def head(browser: Any, key: str) -> Any:
    return browser.find_element("css selector", f"#table thead button[data-key={key}]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["compiled", "hostile"])
def test_it_opens_without_an_error_or_a_request(
    browser: Any, which: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(which)
    visit(browser, page, scheme)
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    time.sleep(0.3)
    assert browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]
    assert int(browser.execute_script("return document.documentElement.dataset.charts")) >= 3
    wide, room = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.strip("rgb()").split(","))
    assert (brightness > 384) == (scheme == "light")


def test_every_chart_is_drawn(browser: Any, hostile: pathlib.Path) -> None:
    visit(browser, hostile)
    canvases = browser.find_elements("css selector", "canvas")
    assert len(canvases) == 7  # coverage, latency, error, sensitivity, timeline, two histograms
    for canvas in canvases:
        browser.execute_script("arguments[0].scrollIntoView()", canvas)
        time.sleep(0.1)
        coloured = browser.execute_script(
            "const it = arguments[0]; return it.getContext('2d')"
            ".getImageData(0, 0, it.width, it.height).data.some((byte) => byte)",
            canvas,
        )
        assert coloured, canvas.get_attribute("id")


def test_the_filters_leave_the_rows_that_fit(browser: Any, hostile: pathlib.Path) -> None:
    visit(browser, hostile)
    assert len(shown(browser)) == 5  # the removed node is hidden
    browser.find_element("id", "filter").send_keys("ENCODER matmul")
    assert [name.split("first")[0] for name in shown(browser)] == ["encoder."]
    put(browser, "filter", "user_b")  # a name that only the full list of origins holds
    assert len(shown(browser)) == 1
    put(browser, "filter", "no such node")
    assert shown(browser) == []
    assert browser.find_element("id", "nothing").is_displayed()
    browser.find_element("id", "clear").click()
    assert len(shown(browser)) == 5
    put(browser, "filter-verdict", "float")
    assert shown(browser, 4) == ["float", "float"]
    put(browser, "filter-op", "Add")
    assert shown(browser) == ["add"]
    assert browser.find_element("id", "count").text == "1 of 6 nodes"
    put(browser, "filter-op", "")
    put(browser, "filter-verdict", "*")
    assert "gone" in shown(browser)


def test_columns_sort_both_ways_and_empty_cells_stay_last(
    browser: Any, hostile: pathlib.Path
) -> None:
    visit(browser, hostile)
    gain = head(browser, "gain")
    gain.click()
    assert shown(browser, 6) == ["1,300", "120", "", "", ""]
    cell = gain.find_element("xpath", "..")
    assert cell.get_attribute("aria-sort") == "descending"
    gain.click()
    assert shown(browser, 6) == ["120", "1,300", "", "", ""]
    head(browser, "verdict").click()
    assert shown(browser, 4) == ["float", "float", "fused", "quantized", "quantized"]
    assert cell.get_attribute("aria-sort") == "none"


def test_the_keyboard_is_enough(browser: Any, hostile: pathlib.Path) -> None:
    from selenium.webdriver.common.keys import Keys

    visit(browser, hostile)
    browser.find_element("tag name", "body").send_keys("/")
    active = browser.switch_to.active_element
    assert active.get_attribute("id") == "filter"
    assert active.get_attribute("value") == ""
    head(browser, "name").send_keys(Keys.ENTER)
    assert shown(browser)[0] == min(shown(browser), key=str.casefold)


def test_the_toggle_goes_from_the_system_s_theme_to_light_to_dark(
    browser: Any, compiled: pathlib.Path
) -> None:
    visit(browser, compiled, "dark")
    colours = []
    for _ in range(3):
        colours.append(
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        )
        browser.find_element("id", "theme").click()
    automatic, light, dark = colours
    assert automatic == dark != light


def test_a_reason_leads_to_its_nodes(browser: Any, hostile: pathlib.Path) -> None:
    visit(browser, hostile)
    browser.execute_script("document.querySelector('button.show[data-code=QC105]').click()")
    assert shown(browser) == ["add"]

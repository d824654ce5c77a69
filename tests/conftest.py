"""Fixtures of all tests: check mode is on, golden texts are compared or rewritten."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import hypothesis
import pytest

os.environ.setdefault("QC_CHECK", "1")  # every pass is held to its contract in every test
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The matrices of tests are small: threads of BLAS and torch would wait for one another, the more
# so when several test processes share the machine. Read when numpy is first imported.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import onnxruntime  # it imports numpy

_SPINNING = "session.intra_op.allow_spinning"


class _SleepingSessions(onnxruntime.SessionOptions):  # type: ignore[misc]
    """Threads of the runtime that wait for one another sleep.

    Spinning they take the processors from the other test process: on two that are busy, MiniLM
    takes 1.7 times the processor time.
    """

    def __init__(self) -> None:
        super().__init__()
        super().add_session_config_entry(_SPINNING, "0")

    def add_session_config_entry(self, key: str, value: str) -> None:
        if key != _SPINNING:
            super().add_session_config_entry(key, value)


onnxruntime.SessionOptions = _SleepingSessions

# A busy machine is no failure; what CI draws today it draws tomorrow.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite golden files from what is printed now"
    )


@pytest.fixture(autouse=True)
def untimed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No artifact is held against the clock, whose verdict hangs on the machine.

    But for tests marked ``timed``, and what fixtures of a wider scope compile.
    """
    if request.node.get_closest_marker("timed") is None:
        monkeypatch.setattr("qcompiler.verify.check._latency", lambda *_, **__: {})


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with ``tests/golden/<name>.txt``: ``golden("fold_batch_norm/conv", text)``."""

    def compare(name: str, text: str) -> None:
        path = pathlib.Path(__file__).parent / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), (
            f"no golden file {path.name}: run pytest --update-golden and review it"
        )
        assert text == path.read_text(encoding="utf-8")

    return compare

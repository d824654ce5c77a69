"""What the end-to-end tests share: models and data on disk, the command line in this process."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.cli.app import run
from qcompiler_models import tiny


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True, scope="module")
def forgetful(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drop what a file compiled behind its last test: each artifact holds weights and a session."""
    yield
    compiled = getattr(request.module, "compiled", None)
    if hasattr(compiled, "cache_clear"):
        compiled.cache_clear()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process: ``cli("compile", model, "-o", folder)``."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            run([str(item) for item in arguments])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return call


@pytest.fixture
def mlp(tmp_path: pathlib.Path) -> pathlib.Path:
    """The tiny perceptron as a file."""
    return save_tiny("mlp", tmp_path)


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """Calibration data for it: a folder of ``.npz`` files."""
    return save_feeds("mlp", tmp_path / "data")


def save_tiny(name: str, folder: pathlib.Path) -> pathlib.Path:
    path = folder / f"{name}.onnx"
    ir.save(tiny.build(name), path)
    return path


def save_feeds(name: str, folder: pathlib.Path, count: int = 4) -> pathlib.Path:
    folder.mkdir()
    for index, feed in enumerate(tiny.feeds(name, count)):
        np.savez(folder / f"{index}.npz", **feed)
    return folder

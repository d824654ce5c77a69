"""Work beside the passes: results and errors as in their place, and nothing left behind."""

from __future__ import annotations

import concurrent.futures
import pathlib
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest

from qcompiler import QcError, qcompile
from qcompiler.diagnostics import Code
from qcompiler.verify.float_session import FloatSession
from qcompiler_models import tiny

_STATIC = {"base": "static-int8", "force": True}


@pytest.fixture
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def saved(folder: pathlib.Path, model: ir.Model) -> pathlib.Path:
    path = folder / "model.onnx"
    ir.save(model, path)
    return path


def compiled(model: Any, **options: Any) -> Mapping[str, Any]:
    return qcompile(model, recipe=_STATIC, calibration=tiny.feeds("mlp", 4), **options).manifest


def test_a_file_has_the_digest_of_its_model(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    model = tiny.build("mlp")
    path = saved(tmp_path, model)
    assert compiled(str(path))["model"] == compiled(ir.load(path))["model"]
    assert not list(scratch.iterdir())


def test_a_compile_that_fails_leaves_nothing(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    path = saved(tmp_path, tiny.build("mlp"))
    before = threading.active_count()

    def progress(step: str) -> None:
        if step == "calibrate":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        compiled(str(path), progress=progress)
    assert threading.active_count() == before
    assert not list(scratch.iterdir())


def test_an_unknown_operator_is_told_as_ever(tmp_path: pathlib.Path) -> None:
    model = tiny.build("mlp")
    first = model.graph.node(0)
    node = ir.node("Wobble", [model.graph.inputs[0]], domain="my.domain", name="in_front")
    node.outputs[0].name = "changed"
    model.graph.insert_before(first, node)
    first.replace_input_with(0, node.outputs[0])
    model.opset_imports["my.domain"] = 1
    report = qcompile(str(saved(tmp_path, model)), recipe="dynamic-int8").report
    (said,) = (item for item in report.diagnostics if item.code is Code.NOT_VERIFIED)
    assert "my.domain:Wobble" in said.message


def test_a_refused_model_is_told_where_it_is_asked_for(scratch: pathlib.Path) -> None:
    broken = scratch / "broken.onnx"
    broken.write_bytes(b"no model")
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        session = FloatSession(broken, beside, threads=None, profiled=True)
        for _ in range(2):
            with pytest.raises(QcError) as caught:
                session.get()
            assert caught.value.code is Code.FLOAT_MODEL_FAILS
    session.close()
    assert list(scratch.iterdir()) == [broken]


def test_a_session_that_nobody_wants_is_closed(
    tmp_path: pathlib.Path, scratch: pathlib.Path
) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        path = saved(tmp_path, tiny.build("mlp"))
        session = FloatSession(path, beside, threads=1, profiled=True)
    session.close()
    assert not list(scratch.iterdir())

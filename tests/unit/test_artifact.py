from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import qcompile
from qcompiler.artifact import Artifact, model_bytes
from qcompiler.cli.opt import run_opt
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import name_everything
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.report.model import Report, coverage
from qcompiler.report.page import write_page
from qcompiler.runtime.settings import SessionSettings
from qcompiler_models import tiny

TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
agraph (float[N,4] x) => (float[N,4] y) <float[4] b = {1, 2, 3, 4}> { y = Add(x, b) }
"""


def an_artifact() -> Artifact:
    model = ir.from_onnx_text(TEXT)
    name_everything(model)
    why = Diagnostic(Code.NO_KERNEL, "Add_0", "no kernel")
    decision = NodeDecision("Add_0", "Add", Verdict.FLOAT, reason=why, origin=("Add_0",))
    plan = Plan("cpu", "float", "ort", {"Add_0": decision})
    report = Report(
        {"name": "tiny", "kind": "onnx"}, "cpu", "float", "ort", coverage(plan), diagnostics=(why,)
    )
    settings = SessionSettings("disable", {"session.intra_op.allow_spinning": "0"})
    companions = {"tokenizer.json": b"{}", "notes.bin": b"\x00\xff"}
    return Artifact(model, plan, report, settings, {"recipe": {"name": "float"}}, companions)


def test_an_artifact_reads_back_whole(tmp_path: pathlib.Path) -> None:
    artifact = an_artifact()
    loaded = Artifact.load(artifact.save(tmp_path / "out"))
    assert loaded.plan == artifact.plan
    assert loaded.report == artifact.report
    assert loaded.settings == artifact.settings
    assert loaded.manifest == artifact.manifest
    assert loaded.companions == artifact.companions
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded.run({"x": x})["y"], artifact.run({"x": x})["y"])


def test_saving_twice_gives_the_same_bytes(tmp_path: pathlib.Path) -> None:
    first, second = an_artifact().save(tmp_path / "a"), an_artifact().save(tmp_path / "b")
    for name in ("model.onnx", "plan.json", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_older_artifact_is_replaced_and_nothing_is_left_beside(tmp_path: pathlib.Path) -> None:
    older = dataclasses.replace(an_artifact(), companions={"vocabulary.txt": b"a b"})
    older.save(tmp_path / "out")
    an_artifact().save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "vocabulary.txt").exists()


def test_files_beside_an_artifact_in_its_folder_are_not_lost(tmp_path: pathlib.Path) -> None:
    an_artifact().save(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("dear")
    with pytest.raises(QcError, match=r"other files than an artifact's: notes\.txt"):
        an_artifact().save(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "dear"


def test_a_manifest_of_something_else_is_no_artifact(tmp_path: pathlib.Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(QcError, match="holds other files"):
        an_artifact().save(tmp_path)
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("before", ["nothing", "empty", "artifact"])
def test_ctrl_c_between_two_renames_leaves_what_was_there(
    before: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if before == "empty":
        out.mkdir()
    elif before == "artifact":
        an_artifact().save(out)
    was = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.setattr(pathlib.Path, "replace", stop_at(pathlib.Path.replace, "model.onnx"))
    monkeypatch.setattr(pathlib.Path, "rename", stop_at(pathlib.Path.rename, "artifact"))
    with pytest.raises(KeyboardInterrupt):
        an_artifact().save(out)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.rglob("*")) == was
    an_artifact().save(out)


def stop_at(move: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``move``, but Ctrl-C is pressed when a path of this name comes."""

    def moved(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        if path.name == name:
            raise KeyboardInterrupt
        return move(path, target)  # type: ignore[no-any-return]

    return moved


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_device_is_not_replaced(tmp_path: pathlib.Path) -> None:
    device = tmp_path / "device"
    os.mkfifo(device)
    artifact = an_artifact()
    model = artifact.save(tmp_path / "out") / "model.onnx"
    for write in (
        lambda: artifact.save(device),
        lambda: write_page(artifact.report, artifact.plan, device),
        lambda: run_opt(str(model), "", "cpu", None, None, device),
    ):
        with pytest.raises(QcError) as error:
            write()
        assert error.value.code is Code.NOT_WRITABLE
        assert device.is_fifo()


def test_a_folder_with_other_files_is_not_overwritten(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(QcError, match="holds other files") as error:
        an_artifact().save(tmp_path)
    assert error.value.code is Code.NOT_WRITABLE
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_a_failed_write_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: pathlib.Path, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(QcError, match="No space left") as error:
        an_artifact().save(tmp_path / "out")
    assert error.value.code is Code.NOT_WRITABLE
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_disk_does_not_hold_leave_nothing(tmp_path: pathlib.Path) -> None:
    """Real: the system refuses to write on, as a full disk does."""
    resource = pytest.importorskip("resource")
    artifact = an_artifact()
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((512, 512), np.float32), name="w"))
    artifact.model.graph.register_initializer(weight)
    artifact.model.graph.append(ir.node("Identity", [weight], name="reader"))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(QcError, match="cannot be written: File too large") as error:
            artifact.save(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert error.value.code is Code.NOT_WRITABLE
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(QcError, match="is a file"):
        an_artifact().save(tmp_path / "out")


def test_an_edited_file_is_noticed(tmp_path: pathlib.Path) -> None:
    out = an_artifact().save(tmp_path / "out")
    (out / "plan.json").write_text((out / "plan.json").read_text() + "\n")
    with pytest.raises(QcError, match="hash differs"):
        Artifact.load(out)
    assert Artifact.load(out, check=False).plan == an_artifact().plan


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: pathlib.Path) -> None:
    out = an_artifact().save(tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["../secret"] = "0"
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(QcError) as error:
        Artifact.load(out)
    assert error.value.code is Code.NOT_ARTIFACT


def test_what_is_no_artifact_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(QcError) as error:
        Artifact.load(tmp_path)
    assert error.value.code is Code.NOT_ARTIFACT


def test_shared_constants_count_once() -> None:
    model = ir.from_onnx_text(TEXT)
    before = model_bytes(model)
    tensor = model.graph.initializers["b"].const_value
    twin = ir.Value(name="twin", const_value=tensor)
    model.graph.register_initializer(twin)
    assert model_bytes(model) == before == 16


def test_a_feed_is_a_mapping_a_tuple_or_an_array() -> None:
    model = tiny.build("mlp")
    name = str(model.graph.inputs[0].name)
    artifact = qcompile(model, recipe="float")
    x = tiny.feeds("mlp", 1)[0][name]
    want = artifact.run({name: x})
    for feed in (x, (x,)):
        found = artifact.run(feed)
        assert all(np.array_equal(found[key], want[key]) for key in want)
    with pytest.raises(QcError) as error:
        artifact.run(())
    assert error.value.code is Code.FEED_NAME

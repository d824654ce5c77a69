from __future__ import annotations

import json
import pathlib
import signal

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.artifact import Artifact, model_bytes
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import name_everything
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.report.model import Report, coverage
from qcompiler.runtime.settings import SessionSettings

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
    an_artifact().save(tmp_path / "out")
    (tmp_path / "out" / "stale.txt").write_text("old")
    an_artifact().save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "stale.txt").exists()


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

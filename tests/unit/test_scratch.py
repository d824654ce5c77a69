"""What a killed process leaves behind goes with the next one's; what lives stays."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.scratch import Scratch, clear_stale
from qcompiler.stages.spool import Spool
from qcompiler.stages.store import WeightStore
from qcompiler_models import tiny

HOLDER = """
import sys, numpy
from qcompiler.stages.store import WeightStore
from qcompiler.stages.spool import Spool
store, spool = WeightStore(), Spool(0)
spool.put("x", 0, numpy.ones(5))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def holder() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(os.name != "posix", reason="locks of another kind")
def test_a_killed_compile_leaves_nothing_for_long(place: pathlib.Path) -> None:
    living, killed = holder(), holder()
    try:
        assert len(list(place.iterdir())) == 4
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(list(place.iterdir())) == 4
        store = WeightStore()
        assert len(list(place.iterdir())) == 3  # the living one's two, and this
        assert store.folder in place.iterdir()
    finally:
        living.kill()
        living.communicate()
        killed.communicate()
    spool = Spool(0)
    spool.put("x", 0, np.ones(3))
    assert len(list(place.iterdir())) == 2
    spool.close()
    del store
    assert not list(place.iterdir())


def test_only_own_folders_are_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "qcompiler-notes").mkdir()
    (tmp_path / "qcompiler-notes" / "text").write_text("mine")
    with Scratch(tmp_path) as folder:
        clear_stale(tmp_path)
        assert folder.is_dir()
        with Scratch(tmp_path) as other:
            assert other != folder
    assert [path.name for path in tmp_path.iterdir()] == ["qcompiler-notes"]


@pytest.mark.skipif(os.name != "posix", reason="locks of another kind")
def test_a_save_that_was_killed_does_not_stand_in_the_way(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for out in ("empty", "new"):
        script = f"""
import pathlib
from qcompiler import Artifact, qcompile
from qcompiler_models import tiny
artifact = qcompile(tiny.build("mlp"), recipe="float")
def die(self, folder):
    (pathlib.Path(folder) / "model.onnx").write_text("half")
    {kill}
Artifact._write = die
artifact.save({str(tmp_path / out)!r})
"""
        done = subprocess.run([sys.executable, "-c", script], check=False)
        assert done.returncode == -signal.SIGKILL
        assert any("model.onnx" in files for _, _, files in os.walk(tmp_path))
        qcompile(tiny.build("mlp"), recipe="float", output=tmp_path / out)
        assert Artifact.load(tmp_path / out).run(tiny.feeds("mlp", 1)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]
    assert not [path.name for path in (tmp_path / "empty").iterdir() if path.is_dir()]

"""The command line where its streams, its signals and its paths are not the usual ones."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import onnx
import pytest

from qcompiler.cli.standard_streams import standard_streams

SELF = (sys.executable, "-m", "qcompiler")


def shell(line: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``qc`` is the command; the exit code is the command's."""
    script = f'qc() {{ {SELF[0]} -m qcompiler "$@"; }}; set -o pipefail; {line}'
    return subprocess.run(
        ["bash", "-c", script], env={**os.environ, **settings}, capture_output=True, text=True
    )


@pytest.mark.parametrize("command", ["targets", "passes --json", "targets show cpu"])
@pytest.mark.parametrize("end", ["| true", "| head -1 > /dev/null", ">&-", ">&- 2>&-"])
def test_nobody_reads_what_is_printed(command: str, end: str) -> None:
    said = shell(f"qc {command} {end}")
    assert (said.returncode, said.stderr) == (0, "")


def test_a_reader_that_leaves_does_not_change_the_exit_code(tmp_path: pathlib.Path) -> None:
    assert shell(f"qc explain {tmp_path} --json | true").returncode == 2


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_under_standard_output_is_told() -> None:
    said = shell("qc targets > /dev/full")
    assert said.returncode == 2
    assert said.stderr.startswith("QC706 standard output: cannot be written")
    assert "Traceback" not in said.stderr


def test_characters_that_the_terminal_lacks_are_spelled_out(tmp_path: pathlib.Path) -> None:
    said = shell(f"qc explain {tmp_path}/größe", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert said.returncode == 2
    assert r"gr\xf6\xdfe: there is no such file" in said.stderr


@pytest.mark.parametrize(
    "words", [["compile", "--json"], ["compile", "--jsn", "--json"], ["targets", "nix", "--json"]]
)
def test_misspelled_words_are_an_object_too(cli: Any, words: list[str]) -> None:
    said = cli(*words)
    assert said.code == 2
    assert said.json["error"]["code"] == "QC411"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_compile_that_is_stopped_leaves_nothing(
    mlp: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals, code: int
) -> None:
    begun, place, spare = tmp_path / "begun", tmp_path / "place", tmp_path / "spare"
    place.mkdir()
    spare.mkdir()
    script = (  # writing takes as long as that of a large model
        "import pathlib, signal, sys, time, qcompiler.artifact\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
        "from qcompiler.cli.app import run\n"
        "begun, *words = sys.argv[1:]\n"
        "def slow(*_): pathlib.Path(begun).touch(); time.sleep(60)\n"
        "qcompiler.artifact._write_json = slow\n"
        "run(words)\n"
    )
    words = ["compile", str(mlp), "-o", str(place / "out"), "--recipe", "float"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(begun), *words],
        env={**os.environ, "TMPDIR": str(spare)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not begun.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "stopped\n")
    assert list(place.iterdir()) == []
    assert not list(spare.glob("qcompiler-*"))


def test_streams_and_signals_are_as_before_afterwards() -> None:
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM)
    with standard_streams():
        assert signal.getsignal(signal.SIGTERM) is not before[2]
    assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM)) == before


def test_names_with_brackets_are_shown_as_they_are(
    cli: Any, mlp: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = onnx.load(mlp)
    names = ["[/]", "a[bold]", ":smile:"]
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    given = {model.graph.input[0].name: "in[red]", model.graph.output[0].name: "out[/red]"}
    for node in model.graph.node:
        node.input[:] = [given.get(name, name) for name in node.input]
        node.output[:] = [given.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = given.values()
    odd, out = tmp_path / "[b]net.onnx", tmp_path / "[out]"
    onnx.save(model, odd)
    said = cli("compile", odd, "-o", out, "--recipe", "float")
    assert said.code == 0, said.err
    assert "out[/red]" in said.out
    said = cli("explain", out)
    assert all(name in said.out for name in names)
    assert cli("verify", out, "--against", odd).code == 0
    assert names[0] in cli("compare", odd, out).out
    assert "[b]net" in cli("bench", out, "--against", odd, "--rounds", 1, "--seconds", 0.01).out


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_file_names_that_are_no_text(cli: Any, mlp: pathlib.Path, tmp_path: pathlib.Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.onnx")
    mlp.rename(odd)
    out = tmp_path / os.fsdecode(b"\xfe")
    assert cli("compile", odd, "-o", out, "--recipe", "float").code == 0
    assert cli("verify", out, "--against", odd, "--json").code == 0
    times = cli("bench", out, "--against", odd, "--rounds", "1", "--seconds", "0.01", "--json")
    assert [row["name"] for row in json.loads(times.out)] == [odd.name, out.name]


def test_bench_tells_what_it_cannot_read_or_feed(
    cli: Any, mlp: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\xff\xfe" * 100)
    said = cli("bench", mlp, "--against", garbage)
    assert said.code == 2
    assert "QC702" in said.err


def test_costs_of_another_machine_are_refused_before_they_are_measured(cli: Any) -> None:
    said = cli("probe", "--target", "cuda", "--save")
    assert said.code == 2
    assert "are no costs of this machine" in said.err

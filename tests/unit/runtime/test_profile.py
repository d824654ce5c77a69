from __future__ import annotations

import json
import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.runtime.profile import Profiler, read_trace
from qcompiler.runtime.session import open_session, run

TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
agraph (float[4,4] x) => (float[4,4] y) {
  [first] a = MatMul(x, x)
  [second] b = MatMul(a, x)
  [third] y = Sin(b)
}
"""
FEED = {"x": np.eye(4, dtype=np.float32)}


def event(name: str, op: str, at: int, took: int) -> dict[str, object]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": took,
            "args": {"op_name": op}}  # fmt: skip


def starts(*times: int) -> list[dict[str, object]]:
    return [{"cat": "Session", "name": "model_run", "ts": at, "dur": 50} for at in times]


def test_operators_and_nodes_are_timed(tmp_path: pathlib.Path) -> None:
    profiler = Profiler(open_session(ir.from_onnx_text(TEXT), profile=tmp_path / "trace"))
    wanted = run(open_session(ir.from_onnx_text(TEXT)), FEED)
    for _ in range(6):
        np.testing.assert_array_equal(profiler.run(FEED)["y"], wanted["y"])
    times = profiler.times()
    assert times is not None
    assert times.runs == 3
    assert set(times.ops) == {"MatMul", "Sin"}
    assert set(times.nodes) == {"first", "second", "third"}
    assert list(tmp_path.iterdir()) == []


def test_after_a_single_run_there_is_one_more(tmp_path: pathlib.Path) -> None:
    profiler = Profiler(open_session(ir.from_onnx_text(TEXT), profile=tmp_path / "trace"))
    profiler.run(FEED)
    times = profiler.times()
    assert times is not None
    assert times.runs == 1
    assert profiler.times() == times


def test_the_first_run_does_not_count_and_the_fastest_does(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"
    events = [
        *starts(0, 100, 200),
        event("a", "Add", 1, 900),
        event("a", "Add", 101, 7), event("a", "Add", 110, 3),  # twice in one run: in a loop
        event("a", "Add", 201, 30),
        event("b", "Add", 120, 8), event("b", "Add", 220, 5),
    ]  # fmt: skip
    path.write_text(json.dumps(events))
    times = read_trace(path)
    assert times is not None
    assert times.nodes == {"a": 10.0, "b": 5.0}
    assert times.ops == {"Add": 15.0}


@pytest.mark.parametrize("text", ['[{"name": "a"b"}]', "", "[]", json.dumps(starts(0))])
def test_a_trace_that_tells_nothing_is_none(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    assert read_trace(path) is None


def test_names_with_quotation_marks_do_not_break_the_runs(tmp_path: pathlib.Path) -> None:
    model = ir.from_onnx_text(TEXT)
    next(iter(model.graph)).name = 'he said "hi" \\ and left'
    profiler = Profiler(open_session(model, profile=tmp_path / "trace"))
    for _ in range(4):
        assert profiler.run(FEED)["y"].shape == (4, 4)
    profiler.times()
    assert list(tmp_path.iterdir()) == []

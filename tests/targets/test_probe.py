"""The claims of the tables, held against the runtime installed here."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
from packaging import version

from qcompiler.diagnostics import QcError
from qcompiler.targets import probe_traps
from qcompiler.targets.host import host
from qcompiler.targets.probe import probe
from qcompiler.targets.registry import load_target
from qcompiler.targets.schema import Form

X86 = host().machine == "x86_64"


@pytest.fixture(scope="module")
def checked():
    return probe(load_target("cpu"), refit=False)


def test_every_row_of_this_host_holds(checked):
    assert [f"{row.id}: {row.why}" for row in checked.rows if not row.ok] == []


def test_every_form_of_every_row_was_probed(checked):
    target = checked.target
    assert {(row.kernel, row.form) for row in checked.rows} == {
        (row.id, form) for row in target.kernels for form in row.forms
    } | {(row.id, target.form) for row in target.caches}


@pytest.mark.skipif(not X86, reason="the traps of the optimizer were seen on x86")
def test_the_silent_miscompiles_are_where_the_table_says(checked):
    """When this fails the runtime was mended: name the release in the trap's row."""
    found = {trap.id: trap for trap in checked.traps}
    rows = {trap.id: trap for trap in load_target("cpu-vnni").traps}
    runtime = version.parse(onnxruntime.__version__)
    for name in (
        "row-scale-bias",
        "weight-axis-0-matmul",
        "weight-axis-1-conv",
        "row-scale-in-qdq",
        "float-weight-quantized",
        "weight-only-activations",
        "dynamic-bias-in-qdq",
        "static-bias-in-qdq",
        "float8-relu",
        "float8-fused",
        "nbits-half-chain",
    ):
        mended = rows[name].mended
        armed = mended is None or runtime < version.parse(mended)
        assert found[name].armed is armed, f"{name}: {found[name].what}"


def test_a_verdict_on_wrong_numbers_stands_without_the_optimized_graph(monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(probe_traps, "operators", full)
    armed, seen = probe_traps.TRAP_PROBES["row-scale-bias"]()
    assert armed
    assert "no space left on device" in seen


def test_nan_is_no_right_answer(monkeypatch):
    monkeypatch.setattr(probe_traps, "compute", lambda *args: [np.full((8, 48), np.nan)])
    armed, seen = probe_traps.TRAP_PROBES["weight-axis-0-matmul"]()
    assert armed
    assert "off by inf" in seen


def test_numbers_of_generic_qdq_hold_on_this_runtime():
    report = probe(load_target("generic-qdq"), refit=False)
    wrong = [f"{row.id}: {row.why}" for row in report.rows if not row.ok]
    assert wrong == []


@pytest.mark.skipif(not X86, reason="x86 tables")
@pytest.mark.parametrize("name", ["cpu-amx", "cpu-vnni", "cpu-avx512", "cpu-avx2"])
def test_rows_of_other_x86_targets_hold_here(name):
    rows = ["matmul-static", "conv-static", "matmul-token"]
    if name in ("cpu-amx", "cpu-vnni") and "vnni" not in host().features:
        pytest.skip("8-bit weights saturate without VNNI")
    assert all(row.ok for row in probe(load_target(name), rows, refit=False).rows)


def test_a_false_claim_is_found():
    target = load_target("cpu")
    row = dataclasses.replace(target.kernel("add-static"), runtime_op="com.microsoft:QLinearMul")
    liar = dataclasses.replace(target, kernels=(row,))
    report = probe(liar, ["add-static"], refit=False)
    assert [item.ok for item in report.rows] == [False, False]
    assert "wrong" in report.rows[0].why
    assert "wanted com.microsoft:QLinearMul" in report.rows[1].why


def test_one_row_can_be_probed_and_timed_alone():
    report = probe(load_target("cpu"), ["matmul-static"], quick=True, seconds=4.0)
    assert {row.kernel for row in report.rows} == {"matmul-static"}
    assert report.traps == ()
    native = next(row for row in report.rows if row.form is Form.ORT)
    assert native.timings
    assert native.speedup > 0
    assert report.refitted.costs["matmul-static"] != report.target.costs["matmul-static"]
    assert report.refitted.costs["conv-static"] == report.target.costs["conv-static"]
    assert report.to_dict()["rows"][0]["kernel"] == "matmul-static"


def test_time_spent_is_bounded():
    report = probe(load_target("cpu"), ["add-static"], seconds=0.0)
    assert not report.complete
    assert report.refitted == report.target


def test_costs_of_another_isa_are_not_refitted_here():
    other = load_target("cpu-arm64" if X86 else "cpu-amx")
    report = probe(other, ["matmul-static"])
    assert report.refitted == other


def test_progress_is_told():
    told = []
    probe(load_target("cpu"), ["add-static"], refit=False, progress=told.append)
    assert told == ["checking add-static", "checking add-static (qdq)"]


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(QcError, match="'tensorrt' cannot be probed"):
        probe(load_target("tensorrt"))
    with pytest.raises(QcError, match="did you mean 'matmul-static'"):
        probe(load_target("cpu"), ["matmul-statik"])

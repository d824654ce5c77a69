"""GPTQ and AWQ through the API: better than rounding to nearest, and going on after a kill."""

from __future__ import annotations

import importlib
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code, QcError
from qcompiler_models import load_model, tiny

CLIPS = 18  # of speech: rounding to nearest costs 4 % of the loss, the others less than 0.5 %
RECIPE = {"weights": {"bits": 4, "group_size": 16}, "verify": {"guard": False}}


def compile_tiny(algorithm: str, name: str = "transformer", **options: Any) -> Artifact:
    recipe = {"base": f"w4-{algorithm}", **RECIPE}
    data = None if algorithm == "rtn" else tiny.feeds(name, 8)
    options = {"target": "cpu-vnni", "calibration": data, **options}
    return qcompile(tiny.build(name), recipe=recipe, **options)


def error(artifact: Artifact, name: str) -> float:
    """Mean squared error of the outputs on feeds that were not calibrated on."""
    model = qcompile(tiny.build(name), target="cpu-vnni", recipe="float")
    squares = []
    for feed in tiny.feeds(name, 6, seed=7):
        wanted, found = model.run(feed), artifact.run(feed)
        squares += [np.square(found[key] - wanted[key]).mean() for key in wanted]
    return float(np.mean(squares))


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
@pytest.mark.parametrize("name", ["transformer", "encoder", "mlp"])
def test_every_pass_keeps_its_contract(name: str, algorithm: str) -> None:
    artifact = compile_tiny(algorithm, name, check=True)
    rounded = [node for node in artifact.plan if node.algorithm == algorithm]
    assert rounded
    assert error(artifact, name) < np.inf


@pytest.mark.parametrize("insert", [False, True])
def test_awq_scales_channels_exactly(insert: bool) -> None:
    model, feeds = tiny.build("transformer"), tiny.feeds("transformer", 8)
    recipe = {"base": "w4-awq", **RECIPE, "awq": {"insert": insert}}
    artifact = qcompile(model, target="cpu-vnni", recipe=recipe, calibration=feeds, check=True)
    codes = [item.code for item in artifact.report.diagnostics]
    assert Code.SALIENT_SCALED in codes
    assert any(node.node.endswith("/scaled") for node in artifact.plan) == insert


def test_scaled_weights_may_make_up_for_one_another() -> None:
    model, feeds = tiny.build("transformer"), tiny.feeds("transformer", 8)
    recipe = {"base": "w4-awq", **RECIPE, "awq": {"rounding": "gptq"}}
    both = qcompile(model, target="cpu-vnni", recipe=recipe, calibration=feeds, check=True)
    codes = {item.code for item in both.report.diagnostics}
    assert codes >= {Code.SALIENT_SCALED, Code.ROUNDED_IN_STAGES}
    assert error(both, "transformer") < error(compile_tiny("awq"), "transformer")


def test_gptq_is_nearer_to_float_than_rounding_to_nearest() -> None:
    assert error(compile_tiny("gptq"), "transformer") < error(compile_tiny("rtn"), "transformer")


def test_without_data_there_is_a_code() -> None:
    for algorithm in ("gptq", "awq"):
        with pytest.raises(QcError) as found:
            compile_tiny(algorithm, calibration=None)
        assert found.value.code is Code.NEEDS_CALIBRATION


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("gptq", "GPTQ saw 1 rows, wanted at least as many as input channels, 32;"),
        ("awq", "awq saw 1 samples, wanted at least 8"),
        ("teq", "teq saw 1 samples, wanted at least 8"),
        ("autoround", "autoround saw 1 samples, wanted at least 8"),
    ],
)
def test_too_little_data_is_told_with_how_much_is_wanted(algorithm: str, words: str) -> None:
    if algorithm in ("teq", "autoround"):
        pytest.importorskip("torch")
    (feed,) = tiny.feeds("mlp", 1)
    row = {"x": feed["x"][:1]}
    for data, few in (([row], True), ([feed] * 64, False)):
        artifact = compile_tiny(algorithm, "mlp", calibration=data)
        said = [x for x in artifact.report.diagnostics if x.code is Code.FEW_SAMPLES]
        assert [words in item.message for item in said] == [True] * few
        assert all("give" in item.hint for item in said)


def test_a_hessian_of_rank_zero_is_told_and_its_weights_are_rounded_to_nearest() -> None:
    blank = [{"x": np.zeros_like(feed["x"])} for feed in tiny.feeds("mlp", 8)]
    artifact = compile_tiny("gptq", "mlp", calibration=blank)
    first, *_ = [x for x in artifact.report.diagnostics if x.code is Code.DEAD_CHANNELS]
    assert first.message == "all input channels were zero on all data: rounded to nearest there"
    nearest = compile_tiny("rtn", "mlp")
    feed = tiny.feeds("mlp", 1)[0]
    for name, y in artifact.run(feed).items():
        assert np.isfinite(y).all()
        assert np.square(y - nearest.run(feed)[name]).mean() < np.square(y).mean() / 10


@pytest.mark.parametrize("algorithm", ["awq", "teq", "autoround"])
def test_data_of_zeros_teach_nothing_and_that_is_told(algorithm: str) -> None:
    if algorithm in ("teq", "autoround"):
        pytest.importorskip("torch")
    model = tiny.build("mlp")
    for name, value in model.graph.initializers.items():
        if len(value.shape or ()) == 1:  # without biases, zeros give zeros
            value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    blank = [{"x": np.zeros_like(feed["x"])} for feed in tiny.feeds("mlp", 8)]
    recipe = {"base": f"w4-{algorithm}", **RECIPE}
    artifact = qcompile(model, target="cpu-vnni", recipe=recipe, calibration=blank)
    kept = {Code.SALIENT_KEPT, Code.ROUNDING_KEPT}
    said = [item for item in artifact.report.diagnostics if item.code in kept]
    assert sum("on these data" in item.message for item in said) >= 2
    assert all("on these data" in item.message or "is an input" in item.message for item in said)


def test_what_is_in_the_work_folder_is_not_computed_again(tmp_path: pathlib.Path) -> None:
    plain = files(compile_tiny("gptq"), tmp_path / "plain")
    work = tmp_path / "work"
    assert files(compile_tiny("gptq", work=work), tmp_path / "first") == plain
    kept = sorted(work.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in kept[len(kept) // 2 :]:
        path.unlink()
    again = compile_tiny("gptq", work=work)
    assert files(again, tmp_path / "again") == plain
    assert told(again)["found"] == len(kept) // 2
    whole = compile_tiny("gptq", work=work)
    assert (told(whole)["found"], told(whole)["feeds"]) == (len(kept), 0)
    assert files(whole, tmp_path / "whole") == plain


@pytest.mark.parametrize(
    ("algorithm", "searched"),
    [
        ("awq", "qcompiler_passes.prepare.scale_salient_channels.find_scales"),
        ("teq", "qcompiler.algorithms.teq.teq"),
    ],
)
def test_factors_that_were_found_before_a_kill_are_not_searched_again(
    algorithm: str, searched: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if algorithm == "teq":
        pytest.importorskip("torch")
    module, _, name = searched.rpartition(".")
    search, calls, last = getattr(importlib.import_module(module), name), 0, 10**9

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal calls
        if calls == last:
            raise KeyboardInterrupt
        calls += 1
        return search(*given, **options)

    monkeypatch.setattr(searched, counted)
    recipe = {"base": f"w4-{algorithm}", **RECIPE, "teq": {"iters": 10}}
    model, data = tiny.transformer(layers=4), tiny.feeds("transformer", 8)
    options = {"target": "cpu-vnni", "recipe": recipe, "calibration": data}
    plain, whole = qcompile(model, **options), calls
    calls, last = 0, whole // 2
    assert last
    with pytest.raises(KeyboardInterrupt):
        qcompile(model, **options, work=tmp_path / "work")
    calls, last = 0, 10**9
    again = qcompile(model, **options, work=tmp_path / "work")
    assert calls == whole - whole // 2
    assert files(again, tmp_path / "again") == files(plain, tmp_path / "plain")
    assert again.report.diagnostics == plain.report.diagnostics
    calls = 0
    third = qcompile(model, **options, work=tmp_path / "work")
    assert calls == 0
    assert files(third, tmp_path / "third") == files(plain, tmp_path / "plain")
    other = {**options, "recipe": {**recipe, "seed": 1}}
    qcompile(model, **other, work=tmp_path / "work")
    assert calls == whole


def test_other_data_or_options_find_nothing(tmp_path: pathlib.Path) -> None:
    compile_tiny("gptq", work=tmp_path)
    other = compile_tiny("gptq", work=tmp_path, calibration=tiny.feeds("transformer", 8, seed=3))
    assert told(other)["found"] == 0
    recipe = {"base": "w4-gptq", **RECIPE, "gptq": {"damp": 0.02}}
    data = tiny.feeds("transformer", 8)
    model = tiny.build("transformer")
    damped = qcompile(model, target="cpu-vnni", recipe=recipe, calibration=data, work=tmp_path)
    assert told(damped)["found"] == 0


def test_a_damaged_file_is_told(tmp_path: pathlib.Path) -> None:
    compile_tiny("gptq", work=tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(QcError) as found:
        compile_tiny("gptq", work=tmp_path)
    assert found.value.code is Code.NOT_ARTIFACT


@pytest.mark.slow
def test_data_driven_rounding_beats_rtn_on_whisper() -> None:
    model, losses = load_model("whisper-decoder"), {}
    data = model.calibration(16)
    for algorithm in ("rtn", "gptq", "awq"):
        recipe = {
            "base": f"w4-{algorithm}",
            "weights": {"symmetric": False},
            "embeddings": False,
            "verify": {"enabled": False},
        }
        artifact = qcompile(model.onnx(), "cpu-vnni", recipe, data, check=False)
        losses[algorithm] = model.nll(artifact.run, CLIPS)
    assert max(losses["gptq"], losses["awq"]) < losses["rtn"]
    assert min(losses.values()) < 1.015 * model.nll(model.float_run, CLIPS)


@pytest.mark.slow
def test_a_killed_compile_goes_on_to_the_same_bytes(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "work")]
    subprocess.run([*command, str(tmp_path / "whole"), ""], check=True)
    random.seed(time.time_ns())
    stop = random.randint(1, 35)  # of 40 weights
    running = subprocess.Popen([*command, str(tmp_path / "killed"), "work"])
    while len(list((tmp_path / "work").glob("*.npz"))) < stop and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    done = subprocess.run(
        [*command, str(tmp_path / "killed"), "work"], check=True, capture_output=True, text=True
    )
    # q, k and v are found together or not at all
    assert stop - 2 <= int(done.stdout) < 40
    assert read(tmp_path / "killed") == read(tmp_path / "whole")


_PROGRAM = """
import sys
import numpy as np
from onnx import helper, numpy_helper
from qcompiler import qcompile

work, output, use = sys.argv[1:]
rng = np.random.default_rng(0)
nodes, weights, width = [], [], 384

def linear(x, name):
    matrix = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
    weights.append(numpy_helper.from_array(matrix, name + ".weight"))
    nodes.append(helper.make_node("MatMul", [x, name + ".weight"], [name], name=name))
    return name

x = "x"
for i in range(10):
    nodes.append(helper.make_node("Sum", [linear(x, f"{i}.{k}") for k in "qkv"], [f"{i}.sum"]))
    nodes.append(helper.make_node("Relu", [f"{i}.sum"], [f"{i}.relu"]))
    nodes.append(helper.make_node("Add", [x, linear(f"{i}.relu", f"{i}.o")], [f"{i}.out"]))
    x = f"{i}.out"
ends = [helper.make_tensor_value_info(name, 1, ["n", width]) for name in ("x", x)]
graph = helper.make_graph(nodes, "blocks", ends[:1], ends[1:], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
feeds = [{"x": rng.standard_normal((512, width)).astype(np.float32)} for _ in range(4)]
recipe = {"base": "w4-gptq", "verify": {"enabled": False}}
options = {"work": work} if use else {}
artifact = qcompile(
    model, target="cpu-vnni", recipe=recipe, calibration=feeds, output=output, **options
)
said = next(item for item in artifact.report.diagnostics if item.code.id == "QC319")
print(said.values["found"])
"""


def told(artifact: Artifact) -> dict[str, Any]:
    said = [x for x in artifact.report.diagnostics if x.code is Code.ROUNDED_IN_STAGES]
    assert len(said) == 1
    return dict(said[0].values)


def files(artifact: Artifact, folder: pathlib.Path) -> dict[str, bytes]:
    artifact.save(folder)
    return read(folder)


def read(folder: pathlib.Path) -> dict[str, bytes]:
    """What the runtime reads of an artifact."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if "model" in path.name}
    assert found
    return found

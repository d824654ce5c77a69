"""Linear layers of the portable form run on the planned kernels, whatever stands behind them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from by_hand import open_text
from qcompiler import Artifact, qcompile
from qcompiler.diagnostics import Code

WIDTH = 64
BEHIND = {
    "nothing": "v = Identity(h)",
    "relu to float": "r = Relu(h) v = Softmax(r)",
    "relu": "v = Relu(h)",
    "clip to float": "r = Clip(h, zero, two) v = Softmax(r)",
}
SCHEMES: dict[str, dict[str, Any]] = {
    "static": {"base": "static-int8", "force": True},
    "dynamic": {"base": "dynamic-int8", "force": True},
    "weight": {"base": "weight-int4"},
}
KERNELS = {"static": "matmul-static", "dynamic": "matmul-dynamic", "weight": "matmul-weight"}


def layers(rank: int, behind: str, *, bias: bool) -> ir.Model:
    rng = np.random.default_rng(4)
    dims = f"4,{WIDTH}" if rank == 2 else f"4,3,{WIDTH}"
    first = "m = MatMul(x, w1) h = Add(m, b1)" if bias else "h = MatMul(x, w1)"
    constants = {
        "w1": rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32),
        "w2": rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32),
    }
    if bias:
        constants["b1"] = rng.normal(0, 1, WIDTH).astype(np.float32)
    bounds = {"zero": np.float32(0), "two": np.float32(2)}
    constants.update({k: np.asarray(v) for k, v in bounds.items() if k in BEHIND[behind]})
    return open_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[{dims}] x) => (float[{dims}] y)
        {{ {first} {BEHIND[behind]} y = MatMul(v, w2) }}""",
        constants,
    )


def feed(rank: int, seed: int = 5) -> dict[str, np.ndarray]:
    shape = (4, WIDTH) if rank == 2 else (4, 3, WIDTH)
    return {"x": np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)}


def compiled(model: ir.Model, recipe: Any, form: str, rank: int) -> Artifact:
    return qcompile(
        model, target="cpu-vnni", recipe=recipe, form=form, calibration=[feed(rank), feed(rank, 6)]
    )


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize(("rank", "bias"), [(2, True), (2, False), (3, True)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_planned_kernel_runs_whatever_stands_behind(
    scheme: str, rank: int, bias: bool, behind: str
) -> None:
    model = layers(rank, behind, bias=bias)
    artifact = compiled(model, SCHEMES[scheme], "qdq", rank)
    kernels = artifact.report.kernels
    assert [item["kernel"].removesuffix("-u8") for item in kernels["kernels"]] == [
        KERNELS[scheme],
        KERNELS[scheme],
    ]
    assert kernels["planned"] == kernels["seen"] == 2, kernels["operators"]
    told = {item.code for item in artifact.report.diagnostics}
    assert not told & {Code.KERNEL_NOT_SEEN, Code.LEFTOVER_QDQ, Code.LOW_FIDELITY}


@pytest.mark.parametrize("first", ["h = MatMul(x, w1)", "m = MatMul(x, w1) h = Add(m, b1)"])
@pytest.mark.parametrize("results", ["y, t", "y, h"])
def test_a_result_that_some_read_in_floats_is_stored_for_all(first: str, results: str) -> None:
    rng = np.random.default_rng(4)
    constants = {
        "w1": rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32),
        "w2": rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32),
    }
    if "b1" in first:
        constants["b1"] = rng.normal(0, 1, WIDTH).astype(np.float32)
    outputs = ", ".join(f"float[4,{WIDTH}] {name}" for name in results.split(", "))
    model = open_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[4,{WIDTH}] x) => ({outputs})
        {{ {first} t = Erf(h) y = MatMul(h, w2) }}""",
        constants,
    )
    artifact = compiled(model, SCHEMES["static"], "qdq", 2)
    kernels = artifact.report.kernels
    assert kernels["planned"] == kernels["seen"] == 2, kernels["operators"]
    first_layer = next(item for item in artifact.plan if item.kernel)
    assert str(first_layer.outputs[0]) == "u8tz"
    assert Code.LOW_FIDELITY not in {item.code for item in artifact.report.diagnostics}


@pytest.mark.parametrize(("rank", "shape"), [(2, (4, WIDTH)), (2, (4, 1)), (3, (3, WIDTH))])
def test_other_floats_than_a_bias_are_added_behind_integers(
    rank: int, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(4)
    dims = f"4,{WIDTH}" if rank == 2 else f"4,3,{WIDTH}"
    model = open_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[{dims}] x) => (float[{dims}] y)
        {{ m = MatMul(x, w) y = Add(m, b) }}""",
        {
            "w": rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32),
            "b": rng.normal(0, 1, shape).astype(np.float32),
        },
    )
    kernels = compiled(model, SCHEMES["static"], "qdq", rank).report.kernels
    assert kernels["planned"] == kernels["seen"] == 1, kernels["operators"]


@pytest.mark.parametrize("recipe", ["weight-int4", "weight-int8"])
def test_each_reader_of_a_weight_in_few_bits_runs_on_its_kernel(
    recipe: str, tmp_path: pathlib.Path
) -> None:
    weight = np.random.default_rng(4).normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32)
    model = open_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[4,3,{WIDTH}] x) => (float[4,3,{WIDTH}] y)
        {{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }}""",
        {"w": weight},
    )
    chosen = {"base": recipe, "force": True, "weights": {"group_size": 32}}
    artifact = compiled(model, chosen, "qdq", 3)
    kernels = artifact.report.kernels
    assert kernels["planned"] == kernels["seen"] == 2, kernels["operators"]
    [told] = [d for d in artifact.report.diagnostics if d.code is Code.SHARED_WEIGHT]
    shared = compiled(model, chosen, "ort", 3)
    held, less = (x.report.sizes["artifact_bytes"] for x in (artifact, shared))
    assert held - less == pytest.approx(told.values["bytes"], rel=0.2)
    artifact.save(tmp_path / "out")
    one, other = artifact.run(feed(3)), Artifact.load(tmp_path / "out").run(feed(3))
    np.testing.assert_array_equal(one["y"], other["y"])


@pytest.mark.parametrize("recipe", ["dynamic-int8", "auto"])
def test_the_portable_form_has_scales_per_tensor_and_says_so(recipe: str) -> None:
    model = layers(2, "relu", bias=True)
    found = {}
    for form in ("ort", "qdq"):
        artifact = qcompile(
            model, target="cpu-vnni", recipe={"base": recipe, "force": True}, form=form
        )
        told = [d for d in artifact.report.diagnostics if d.code is Code.SCALE_PER_TENSOR]
        found[form] = ({item.kernel for item in artifact.plan if item.kernel}, len(told))
    assert found == {"ort": ({"matmul-token"}, 0), "qdq": ({"matmul-dynamic"}, 1)}

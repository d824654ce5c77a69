"""Smoothing: exact in float whatever absorbs the factors, refused with a reason elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graph_text import with_weights
from qcompiler.algorithms.smoothing import Candidate
from qcompiler.calibration.feeds import open_feeds
from qcompiler.calibration.layers import Layer
from qcompiler.calibration.summary import TensorSummary
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.frontends import open_model
from qcompiler.ir.edit import constant
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.registry import default_pipeline
from qcompiler.pipeline.run import run_pipeline
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.targets.registry import load_target
from qcompiler.verify.check import difference
from qcompiler_passes.prepare.coverage import coverage
from qcompiler_passes.prepare.smooth_activations import SmoothActivations

D, H = 32, 48
RANDOM = np.random.default_rng(3)
OUTLIERS = np.where(np.arange(D) % 11 == 3, 50.0, 1.0).astype(np.float32)


def weight(rows: int, columns: int) -> np.ndarray:
    return RANDOM.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)


WEIGHTS = {
    "gain": OUTLIERS * RANDOM.uniform(0.5, 1.5, D).astype(np.float32),
    "shift": RANDOM.normal(0, 0.1, D).astype(np.float32),
    "w0": weight(D, D) * OUTLIERS,
    "b0": RANDOM.normal(0, 0.1, D).astype(np.float32),
    "w1": weight(D, H) / OUTLIERS[:, None],
    "w2": weight(D, H) / OUTLIERS[:, None],
    "b1": RANDOM.normal(0, 0.1, H).astype(np.float32),
    "wq": weight(D, D),
    "wk": weight(D, D // 2),
    "wv": weight(D, D // 2) * OUTLIERS[: D // 2],
    "wkfull": weight(D, D),
    "undo": 1 / OUTLIERS,
    "whalf": weight(D // 2, H) / OUTLIERS[: D // 2, None],
}


def attention(keys: str, values: str, heads: int) -> str:
    return (
        f"q = MatMul(x, wq) k = MatMul(x, {keys}) v = MatMul(x, {values}) "
        f"a = Attention<q_num_heads=4, kv_num_heads={heads}>(q, k, v) z = MatMul(a, w1)"
    )


HALVES = "s = Constant<value: tensor = int64[2] {16, 16}>()"
LAYER_NORM = "n = LayerNormalization<axis=-1>(x, gain, shift)"
NORMS = f"{LAYER_NORM}  z = MatMul(n, w1)"


def opened(nodes: str, names: str, outputs: str = "float[b,s,n] z") -> ir.Model:
    declared = ", ".join(
        f"float[{','.join(map(str, WEIGHTS[name].shape))}] {name}" for name in names.split()
    )
    text = f"g (float[b,s,{D}] x{', ' if declared else ''}{declared}) => ({outputs}) {{ {nodes} }}"
    text = f'<ir_version: 10, opset_import: ["" : 23]> {text}'
    return open_model(with_weights(text, WEIGHTS)).model


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(7)
    return [{"x": random.normal(size=(2, 24, D)).astype(np.float32)} for _ in range(count)]


def smoothed(
    model: ir.Model, recipe: Mapping[str, Any] | None = None
) -> tuple[ir.Model, State, list[Diagnostic]]:
    """Run the exact passes and smoothing, each held to its contract."""
    target, source = load_target("cpu-vnni"), open_feeds(feeds(), input_specs(model))
    state = State(
        target,
        Recipe.of({"base": "static-int8", "force": True, **(recipe or {})}),
        target.form,
        feeds=source,
        sample=source.first,
    )
    result = model.clone()
    passes = [p for p in default_pipeline() if p.phase.name == "FLOAT"]
    run_pipeline([*passes, SmoothActivations()], result, state, check=True, compare=difference)
    about = [d for d in state.diagnostics if d.code in (Code.SMOOTHED, Code.NOT_SMOOTHED)]
    return result, state, about


def reach_told(data: list[dict[str, np.ndarray]]) -> list[Diagnostic]:
    model = opened(NORMS, "gain shift w1")
    target, source = load_target("cpu-vnni"), open_feeds(data, input_specs(model))
    recipe = Recipe.of({"base": "static-int8", "force": True})
    state = State(target, recipe, target.form, feeds=source, sample=source.first)
    run_pipeline([SmoothActivations()], model, state)
    return [d for d in state.diagnostics if d.code is Code.UNCOVERED]


def test_data_that_do_not_tell_of_other_data_are_told() -> None:
    assert not reach_told(feeds(40))
    (one,) = reach_told([{"x": feeds()[0]["x"][:1]}])
    assert one.values["parts"] == 1


def test_activations_whose_error_is_on_unseen_data_are_told_once() -> None:
    every = np.ones(4)
    chosen = {
        "calm": Candidate(every, loss=1e-4, unseen=1e-5),
        "bad": Candidate(every, loss=1e-4, unseen=6e-5),
        "worst": Candidate(every, loss=2e-4, unseen=1.8e-4),
    }
    first = np.zeros((2, 3, 4), np.float32)
    summary = TensorSummary.start("x", first, (Layer("m", "MatMul", np.eye(4)),), 0.1)
    summary.update(first)
    (found,) = coverage(chosen, dict.fromkeys(chosen, summary), {"worst": "the worst"})
    assert found.where == "the worst"
    assert found.values["shares"] == {"%bad": pytest.approx(0.6), "the worst": pytest.approx(0.9)}


def same(before: ir.Model, after: ir.Model) -> None:
    for feed in feeds(2):
        want, got = (run(open_session(model), feed) for model in (before, after))
        for name, x in want.items():
            np.testing.assert_allclose(got[name], x, rtol=2e-4, atol=2e-4 * np.abs(x).max())


RMS = "n = RMSNormalization<axis=-1>(x, gain)"
FOLDS = {
    "layer norm": (NORMS, "gain shift w1", "LayerNormalization"),
    "rms norm": (f"{RMS} z = MatMul(n, w1)", "gain w1", "RMSNormalization"),
    "two readers": (f"{NORMS} y = MatMul(n, w2)", "gain shift w1 w2", "LayerNormalization"),
    "a reader that divides": (
        f"{NORMS} r = Mul(n, undo)  y = Softmax<axis=-1>(r)",
        "gain shift w1 undo",
        "LayerNormalization",
    ),
    "a part of a split": (
        f"m = MatMul(x, w0) {HALVES} a, c = Split<axis=-1>(m, s) z = MatMul(a, whalf) y = Gelu(c)",
        "w0 whalf",
        "MatMul",
    ),
    "linear with bias": (
        "m = MatMul(x, w0) a = Add(m, b0) z = MatMul(a, w1)",
        "w0 b0 w1",
        "MatMul",
    ),
    "linear, relu": ("m = MatMul(x, w0) r = Relu(m) z = MatMul(r, w1)", "w0 w1", "MatMul"),
    "gate": (
        "m = MatMul(x, w0) g = Sigmoid(x) a = Mul(g, m) z = MatMul(a, w1)",
        "w0 w1",
        "MatMul",
    ),
    "scale": ("g = Sigmoid(x) a = Mul(g, gain) z = MatMul(a, w1)", "gain w1", "Mul"),
    "attention": (
        attention("wkfull", "w0", 4),
        "wq wkfull w0 w1",
        "MatMul",
    ),
    "attention with shared value heads": (
        attention("wk", "wv", 2),
        "wq wk wv w1",
        "MatMul",
    ),
}


@pytest.mark.parametrize("alpha", ["auto", 0.0, 0.5, 1.0])
@pytest.mark.parametrize("case", FOLDS)
def test_factors_fold_into_what_feeds_the_layer_exactly(case: str, alpha: float | str) -> None:
    nodes, names, into = FOLDS[case]
    outputs = "float[b,s,n] z" + (", float[b,s,m] y" if " y = " in nodes else "")
    model = opened(nodes, names, outputs)
    before = len(model.graph)
    if alpha == "auto" and "Norm" not in nodes:
        alpha = 0.8  # auto is for models with normalizations before linear layers
    # a value on the way that is stored in integers has a scale, and cannot be divided
    kept = [op for op in ("Mul", "Sigmoid", "Split") if f" {op}(" in nodes or f" {op}<" in nodes]
    rules = [{"op": op, "scheme": "float"} for op in kept]
    result, state, about = smoothed(model, {"smoothing": {"alpha": alpha}, "rules": rules})
    done = [d for d in about if d.code is Code.SMOOTHED and str(d.values["into"]).startswith(into)]
    assert done, [str(d) for d in about]
    inserted = sum(d.values.get("into") == "Mul" for d in about)
    assert len(result.graph) == before + inserted
    same(model, result)
    assert state.statistics is not None


def test_smoothing_shrinks_the_range_that_has_to_hold_the_outliers() -> None:
    model = opened(NORMS, "gain shift w1")
    result, _, (said,) = smoothed(model)
    assert said.values["loss"] < said.values["loss_without"] / 20
    x = run_value(result, "n")
    assert np.abs(x).max() / np.abs(x).mean() < 15
    assert np.abs(run_value(model, "n")).max() / np.abs(run_value(model, "n")).mean() > 15


def run_value(model: ir.Model, name: str) -> np.ndarray:
    return run_on(model, name, feeds(1)[0])


def test_statistics_are_those_of_the_divided_activation_without_another_run() -> None:
    result, state, _ = smoothed(opened(NORMS, "gain shift w1"))
    assert state.statistics is not None
    summary = state.statistics.summaries["n"]
    assert summary.channels is not None
    seen = np.concatenate([run_on(result, "n", feed).reshape(-1, D) for feed in feeds()])
    np.testing.assert_allclose(summary.channels.hi, seen.max(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(summary.channels.lo, seen.min(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(summary.channels.mean, seen.mean(axis=0), rtol=1e-2, atol=1e-4)


def run_on(model: ir.Model, name: str, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    copy = model.clone()
    copy.graph.outputs.append(
        next(out for node in copy.graph for out in node.outputs if out.name == name)
    )
    return run(open_session(copy), feed)[name]


class Counting:
    """Calibration data that counts how often it is streamed."""

    def __init__(self) -> None:
        self.streams = 0

    def __iter__(self) -> Any:
        self.streams += 1
        return iter(feeds())


def test_a_whole_compile_streams_the_data_once_for_smoothing_and_ranges() -> None:
    from qcompiler import qcompile

    def streams(alpha: Any) -> int:
        data = Counting()
        recipe = {
            "base": "static-int8",
            "force": True,
            "smoothing": {"alpha": alpha},
            "verify": {"enabled": False},
        }
        artifact = qcompile(opened(NORMS, "gain shift w1"), "cpu-vnni", recipe, data)
        assert artifact.plan.count()["quantized"] == 1
        return data.streams

    assert streams("auto") == streams(None)


REFUSED = {
    "an output": (NORMS, "gain shift w1", "float[b,s,n] z, float[b,s,d] n", "is an output"),
    "another reader": (
        f"{NORMS} y = Softmax<axis=-1>(n)",
        "gain shift w1",
        "float[b,s,n] z, float[b,s,d] y",
        "Softmax",
    ),
    "a nonlinearity": (
        f"{LAYER_NORM} m = Gelu(n) z = MatMul(m, w1) y = MatMul(n, w2)",
        "gain shift w1 w2",
        "float[b,s,n] z, float[b,s,d] y",
        "Gelu",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_absorb_factors_is_named_when_no_mul_is_allowed(case: str) -> None:
    nodes, names, outputs, why = REFUSED[case]
    recipe = {"smoothing": {"insert": False}}
    _, _, about = smoothed(opened(nodes, names, outputs), recipe)
    said = [d for d in about if d.code is Code.NOT_SMOOTHED]
    assert any(why in d.message and "the recipe allows no Mul" in d.message for d in said), about


def test_a_weight_that_others_read_too_is_not_scaled() -> None:
    nodes = f"{LAYER_NORM} z = MatMul(n, w1) g = Gelu(x) y = MatMul(g, w1)"
    model = opened(nodes, "gain shift w1", "float[b,s,n] z, float[b,s,m] y")
    result, _, about = smoothed(model)
    assert all(d.code is Code.NOT_SMOOTHED and "shared" in d.message for d in about)
    same(model, result)


def test_off_and_models_without_data_are_left_alone() -> None:
    model = opened(NORMS, "gain shift w1")
    result, state, about = smoothed(model, {"smoothing": {"alpha": None}})
    assert not about
    assert state.statistics is None
    gain = constant(next(n for n in result.graph if n.op_type == "LayerNormalization").inputs[1])
    np.testing.assert_array_equal(gain, WEIGHTS["gain"])


def test_block_criterion_gives_one_choice_to_the_layers_of_a_block() -> None:
    nodes = f"{LAYER_NORM} m = MatMul(n, w0) r = Relu(m) z = MatMul(r, w1)"
    model = opened(nodes, "gain shift w0 w1")
    for node in model.graph:
        node.metadata_props["qcompiler.module"] = "layers.0.part"
    _, _, about = smoothed(model, {"smoothing": {"criterion": "block"}})
    assert len({d.values["choice"] for d in about}) == 1

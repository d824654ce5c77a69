"""Trials of rounded weights against the runtime with these weights in the model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graph_text import with_weights
from qcompiler.algorithms.data_free import rtn
from qcompiler.ir.edit import constant, name_everything
from qcompiler.runtime.session import open_session, run
from qcompiler.schemes import Granularity, QSpec
from qcompiler.sensitivity.gradients import weight_damages
from qcompiler.sensitivity.trials import divergences
from qcompiler_models.tiny import build, feeds, transformer

SPEC = QSpec(ir.DataType.UINT4, Granularity.BLOCK, symmetric=True, axis=0, group_size=16)


def rounded_weights(model):
    name_everything(model)
    layers = [n for n in model.graph if n.op_type == "MatMul" and constant(n.inputs[1]) is not None]
    return {(n.name, 1): rtn(constant(n.inputs[1]), SPEC) for n in layers}


def outputs_with(model, trial, feed):
    weights = {node.name: node.inputs[1] for node in model.graph if len(node.inputs) > 1}
    kept = {weights[name]: weights[name].const_value for name, _ in trial}
    for (name, _), tensor in trial.items():
        value = weights[name]
        value.const_value = ir.tensor(tensor.dequantize(), name=value.name)
    found = run(open_session(model), feed)
    for value, tensor in kept.items():
        value.const_value = tensor
    return found


def test_squared_errors_are_shares_of_the_output_and_means_over_feeds():
    model, samples = build("mlp"), feeds("mlp", 3)
    rounded = rounded_weights(model)
    first = dict(list(rounded.items())[:1])
    found = divergences(model, samples, [first, rounded, {}])
    for trial, measured in zip((first, rounded), found, strict=False):
        shares = []
        for feed in samples:
            want, got = outputs_with(model, {}, feed), outputs_with(model, trial, feed)
            shares.append(sum(np.sum((got[k] - x) ** 2) / np.sum(x**2) for k, x in want.items()))
        assert measured == pytest.approx(np.mean(shares), rel=1e-3)
    assert found[0] > 0.0
    assert found[2] == 0.0


def test_logits_are_judged_by_divergence():
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 16]))
    data = rng.normal(size=(16, 64)).astype(np.float32)
    weight = ir.Value(name="w", const_value=ir.tensor(data, name="w"))
    node = ir.node("MatMul", [x, weight], name="head")
    node.outputs[0].name = "logits"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20})
    feed = {"x": rng.normal(size=(2, 16)).astype(np.float32)}
    tensor = rtn(data, SPEC)

    def shares(weights):
        logits = feed["x"].astype(np.float64) @ weights
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return logits

    p, q = shares(data), shares(tensor.dequantize())
    wanted = 2 * (np.exp(p) * (p - q)).sum()
    model = ir.Model(graph, ir_version=10)
    assert divergences(model, [feed], [{("head", 1): tensor}]) == [pytest.approx(wanted, rel=1e-3)]


def test_text_beside_the_numbers_passes_as_it_is():
    data = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    model = with_weights(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N,16] x, string[N] names, float[16,8] w) => (float[N,8] y, string[N] told) {
            y = MatMul(x, w)
            told = Identity(names)
        }""",
        {"w": data},
    )
    name_everything(model)
    x = np.ones((2, 16), np.float32)
    feed = {"x": x, "names": np.array(["a", "b"], object)}
    tensor = rtn(data, SPEC)
    error = tensor.dequantize() - data
    wanted = np.sum((x @ error) ** 2) / np.sum((x @ data) ** 2)
    layer = model.graph[0]
    moved = divergences(model, [feed], [{(layer.name, 1): tensor}])
    assert moved == [pytest.approx(wanted, rel=1e-3)]
    found = weight_damages(model, [layer], [feed], [4], lambda node, option: error).found
    assert found[str(layer.name)][4] > 0.0


def test_block_by_block_and_through_files_it_is_the_same():
    model, samples = transformer(layers=3), feeds("transformer", 2)
    rounded = rounded_weights(model)
    last = dict(list(rounded.items())[-1:])
    found = divergences(model, samples, [rounded, last], memory=0)
    for trial, measured in zip((rounded, last), found, strict=True):
        shares = []
        for feed in samples:
            want, got = outputs_with(model, {}, feed), outputs_with(model, trial, feed)
            shares.append(sum(np.sum((got[k] - x) ** 2) / np.sum(x**2) for k, x in want.items()))
        assert measured == pytest.approx(np.mean(shares), rel=1e-3)
    assert found[0] > found[1] > 0.0

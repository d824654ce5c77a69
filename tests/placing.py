"""Models, a target with round costs, and one call that plans: for the tests of deciding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import name_everything
from qcompiler.ir.provenance import mark_origins
from qcompiler.pipeline.contract import State
from qcompiler.pipeline.run import run_pipeline
from qcompiler.plan import Plan, Verdict
from qcompiler.recipe import Recipe
from qcompiler.targets.onnxruntime_cpu import CPU_VNNI
from qcompiler.targets.schema import Cost, Form, Target
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.decide.place_precision import PlacePrecision

# Float takes 1 us an element and 1 us a multiply-accumulate, static kernels a quarter of that.
COSTS: Mapping[str, Cost] = {
    "float": Cost(per_element_ns=1000),
    "float.Conv": Cost(per_mac_ns=((1, 1000),)),
    "float.MatMul": Cost(per_mac_ns=((1, 1000),)),
    "conv-static": Cost(per_mac_ns=((1, 250),)),
    "matmul-static": Cost(per_mac_ns=((1, 250),)),
    "matmul-static-u8": Cost(per_mac_ns=((1, 250),)),
    "matmul-dynamic": Cost(per_mac_ns=((1, 500),)),
    "matmul-token": Cost(per_mac_ns=((1, 300),)),
    "matmul-weight": Cost(per_mac_ns=((1, 2000),)),
    "gather-weight": Cost(per_element_ns=2000),
    "add-static": Cost(per_element_ns=500),
    "mul-static": Cost(per_element_ns=500),
    "sigmoid-static": Cost(per_element_ns=1500),
    "concat-static": Cost(per_element_ns=1000),
    "average-pool-static": Cost(per_element_ns=1000),
    "global-average-pool-static": Cost(per_element_ns=1000),
    "quantize": Cost(per_element_ns=700),
    "dequantize": Cost(per_element_ns=500),
    "quantize-token": Cost(per_element_ns=900),
    "carry.Transpose": Cost(per_element_ns=800),
}
TOY = dataclasses.replace(CPU_VNNI, name="toy", costs=COSTS)
CALIBRATED: Any = object()  # deciding only asks whether there is data

RESIDUAL = """<ir_version: 10, opset_import: ["": 21]>
residual (float[1,2,4,4] x, float[2,2,3,3] W1, float[2] B1, float[2,2,3,3] W2, float[2] B2)
  => (float[1,2,4,4] y) {
  [conv1] a = Conv<pads=[1,1,1,1]>(x, W1, B1)
  [relu1] b = Relu(a)
  [conv2] c = Conv<pads=[1,1,1,1]>(b, W2, B2)
  [sum] d = Add(c, b)
  [relu2] e = Relu(d)
  [turn] f = Transpose<perm=[0,1,3,2]>(e)
  [soft] y = Softmax(f)
}
"""

BLOCK = """<ir_version: 10, opset_import: ["": 21]>
block (float[2,8,16] x, float[16,16] WQ, float[16,16] WK, float[16] BQ, float[16,64] W1,
       float[64] B1, float[64,16] W2, float[16] B2) => (float[2,8,16] y) {
  [q] q0 = MatMul(x, WQ)
  [q_bias] q1 = Add(q0, BQ)
  [k] k0 = MatMul(x, WK)
  [kt] k1 = Transpose<perm=[0,2,1]>(k0)
  [scores] s = MatMul(q1, k1)
  [softmax] p = Softmax(s)
  [mix] m = MatMul(p, x)
  [add] r = Add(m, x)
  [fc1] h0 = MatMul(r, W1)
  [fc1_bias] h1 = Add(h0, B1)
  [gelu] g = Gelu(h1)
  [fc2] o0 = MatMul(g, W2)
  [fc2_bias] o1 = Add(o0, B2)
  [rows] n = Shape(o1)
  [back] y = Reshape(o1, n)
}
"""


def model_of(text: str) -> ir.Model:
    """A model from ONNX text; inputs named in capitals become weights, filled with a seed."""
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    for value in [value for value in model.graph.inputs if str(value.name).isupper()]:
        model.graph.inputs.remove(value)
        assert value.shape is not None, "a weight is declared with its shape"
        array = rng.standard_normal([int(size) for size in value.shape.numpy()])
        value.const_value = ir.tensor(array.astype("float32"), name=value.name)
        model.graph.register_initializer(value)
    name_everything(model)
    mark_origins(model)
    return model


def planned(
    model: ir.Model,
    recipe: str | Mapping[str, Any] = "auto",
    target: Target = TOY,
    *,
    form: Form | None = None,
    feeds: Any = CALIBRATED,
    plan: Plan | None = None,
) -> State:
    """The state after the passes of deciding, in check mode."""
    state = State(target, Recipe.of(recipe), form or target.form, feeds=feeds, plan=plan)
    run_pipeline([ObserveShapes(), PlacePrecision()], model, state, check=True)
    return state


def graph(body: str, inputs: str = "float[2,8,16] x", outputs: str = "float[2,8,16] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return model_of(text)


def linear(weights: str = "float[16,16] W", body: str = "[fc] y = MatMul(x, W)") -> ir.Model:
    return graph(body, f"float[2,8,16] x, {weights}", "float y")


def with_costs(**costs: Cost) -> Target:
    keys = {key.replace("__", "."): cost for key, cost in costs.items()}
    keys = {key.replace("_", "-"): cost for key, cost in keys.items()}
    return dataclasses.replace(TOY, costs={**COSTS, **keys})


def codes(plan: Plan) -> dict[str, Code]:
    return {d.node: d.reason.code for d in plan if d.reason is not None}


def kernels(plan: Plan) -> dict[str, str]:
    return {d.node: d.kernel for d in plan if d.verdict is Verdict.QUANTIZED}


def refused(code: Code, *args: Any, **kwargs: Any) -> QcError:
    with pytest.raises(QcError) as caught:
        planned(*args, **kwargs)
    assert caught.value.code is code
    return caught.value

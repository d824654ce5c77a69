"""The passes calibrate and refine-rounding, on hand-made plans."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.calibration.feeds import open_feeds
from qcompiler.calibration.runner import collect
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import State
from qcompiler.plan import Fixed, Own, Plan, Same
from qcompiler.recipe import CalibrationOptions, Recipe
from qcompiler.runtime.inputs import input_specs
from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Form, Target
from qcompiler_passes.measure.calibrate import Calibrate
from qcompiler_passes.weights.refine_rounding import RefineRounding

U8, S8 = QSpec.parse("u8tz"), QSpec.parse("s8c@0")
TARGET = Target("t", "onnxruntime", "a target", Form.ORT, 21, ())


def conv_model(depthwise: bool) -> ir.Model:
    """Conv 3x3 (depthwise or not), Sigmoid."""
    rng = np.random.default_rng(0)
    shape = (4, 1, 3, 3) if depthwise else (6, 4, 3, 3)
    x = ir.Value(name="x", shape=ir.Shape(["n", 4, 9, 9]), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(
        name="w", const_value=ir.tensor(rng.standard_normal(shape).astype(np.float32))
    )
    weight.shape, weight.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    conv = ir.node("Conv", [x, weight], {"group": shape[0] if depthwise else 1}, name="conv")
    conv.outputs[0].name = "c"
    out = ir.node("Sigmoid", conv.outputs, name="sigmoid")
    out.outputs[0].name = "y"
    out.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], out.outputs, nodes=[conv, out], initializers=[weight], opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    smooth = [np.cumsum(rng.standard_normal((4, 4, 9, 9)), axis=3) + 3 for _ in range(count)]
    return [{"x": x.astype(np.float32)} for x in smooth]


def state_of(model: ir.Model, plan: Plan, data: object = None) -> State:
    found = None if data is None else open_feeds(data, input_specs(model))
    return State(TARGET, Recipe(), Form.ORT, feeds=found, plan=plan)


def test_values_that_own_parameters_are_measured_and_no_others() -> None:
    model = conv_model(depthwise=False)
    before = model_text(model)
    values = {"x": Own(U8), "c": Own(U8), "y": Fixed(U8, 0.0, 1.0), "z": Same("x")}
    state = state_of(model, Plan("t", "r", "ort", {}, values), feeds())
    result = Calibrate().run(model, state)
    assert not result.modified
    assert model_text(model) == before
    assert state.ranges is not None
    assert set(state.ranges) == {"x", "c"}
    assert state.statistics is not None
    assert state.statistics.feeds == 3
    assert state.ranges["x"].hi <= max(feed["x"].max() for feed in feeds())


def test_a_plan_without_static_values_needs_no_data() -> None:
    model = conv_model(depthwise=False)
    state = state_of(model, Plan("t", "r", "ort", {}, {"x": Own(QSpec.parse("u8kd"))}))
    assert Calibrate().run(model, state).diagnostics == ()
    assert state.ranges == {}
    assert state.statistics is not None


def test_static_values_without_data_are_an_error() -> None:
    model = conv_model(depthwise=False)
    with pytest.raises(QcError) as error:
        Calibrate().run(model, state_of(model, Plan("t", "r", "ort", {}, {"x": Own(U8)})))
    assert error.value.code is Code.NEEDS_CALIBRATION


def test_statistics_that_are_there_are_used_instead_of_data() -> None:
    model = conv_model(depthwise=False)
    state = state_of(model, Plan("t", "r", "ort", {}, {"x": Own(U8)}))
    state.statistics = collect(model, ["x"], feeds(), CalibrationOptions())
    Calibrate().run(model, state)
    assert state.ranges is not None
    assert state.ranges["x"] == state.statistics.range_of("x", U8, CalibrationOptions())


@pytest.mark.parametrize("depthwise", [True, False])
def test_refined_kernels_keep_their_scales_and_err_less(depthwise: bool) -> None:
    model = conv_model(depthwise)
    state = state_of(model, Plan("t", "r", "ort", {}))
    weight = model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    start = round_to_nearest(weight, S8)
    state.weights = {("conv", 1): start, ("elsewhere", 1): start}
    data = feeds()
    state.statistics = collect(model, ["x"], data, CalibrationOptions())
    result = RefineRounding().run(model, state)
    assert not result.modified
    assert state.weights["elsewhere", 1] is start
    better = state.weights["conv", 1]
    np.testing.assert_array_equal(better.scale, start.scale)

    def output_error(values: np.ndarray) -> float:
        x = np.pad(data[0]["x"], ((0, 0), (0, 0), (1, 1), (1, 1)))
        error = values - weight
        total = 0.0
        for row, column in np.ndindex(9, 9):
            patch = x[:, :, row : row + 3, column : column + 3]
            if depthwise:
                total += np.square(np.einsum("ncij,cij->nc", patch, error[:, 0])).sum()
            else:
                total += np.square(np.einsum("ncij,ocij->no", patch, error)).sum()
        return float(total)

    assert output_error(better.dequantize()) < 0.6 * output_error(start.dequantize())


def test_weights_without_measured_inputs_stay_as_they_are() -> None:
    model = conv_model(depthwise=True)
    state = state_of(model, Plan("t", "r", "ort", {}))
    weight = model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    start = round_to_nearest(weight, S8)
    state.weights = {("conv", 1): start}
    state.statistics = collect(model, [], [], CalibrationOptions())
    RefineRounding().run(model, state)
    assert state.weights["conv", 1] is start
    state.statistics = collect(model, ["x"], feeds(), CalibrationOptions())
    with_zero = dataclasses.replace(start, zero_point=np.zeros(start.scale.shape, np.int32))
    state.weights = {("conv", 1): with_zero}
    RefineRounding().run(model, state)
    assert state.weights["conv", 1] is with_zero


def test_matmul_is_refined_when_asked_for() -> None:
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 8] x) => (float[n, 5] y) { y = MatMul(x, w) }"""
    )
    node = model.graph[0]
    node.name = "mm"
    weight = node.inputs[1]
    assert weight is not None
    array = rng.standard_normal((8, 5)).astype(np.float32)
    weight.const_value = ir.tensor(array, name="w")
    weight.shape, weight.type = ir.Shape((8, 5)), ir.TensorType(ir.DataType.FLOAT)
    model.graph.register_initializer(weight)
    start = round_to_nearest(array, QSpec.parse("s8c@1"))
    x = (rng.standard_normal((64, 1)) + 2 + 0.2 * rng.standard_normal((64, 8))).astype(np.float32)
    state = state_of(model, Plan("t", "r", "ort", {}))
    state.weights = {("mm", 1): start}
    state.statistics = collect(model, ["x"], [{"x": x}], CalibrationOptions())
    RefineRounding().run(model, state)
    assert state.weights["mm", 1] is start
    RefineRounding(linear=True).run(model, state)
    better = state.weights["mm", 1]
    error = [np.square(x @ (t.dequantize() - array)).sum() for t in (start, better)]
    assert error[1] < 0.6 * error[0]
    assert better.spec == start.spec

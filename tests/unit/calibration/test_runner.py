"""Calibrating a model: one pass, masks, infinities, readers' errors, saved summaries."""

import pathlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.calibration.feeds import open_feeds
from qcompiler.calibration.runner import Statistics, collect
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.provenance import mark_origins
from qcompiler.ir.text import model_text
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import CalibrationOptions
from qcompiler.runtime.inputs import input_specs
from qcompiler.schemes import QSpec

U8 = QSpec.parse("u8tz")
S8 = QSpec.parse("s8t")
OPTIONS = CalibrationOptions()
METHODS = ("auto", "minmax", "moving-average", "percentile", "entropy", "mse")


def encoder() -> ir.Model:
    """Two linear layers over a sequence, with a mask that the first output meets."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[batch, sequence, 8] x, int64[batch, sequence] attention_mask)
          => (float[batch, sequence, 4] y) {
          h = MatMul(x, w1)
          r = Relu(h)
          y = MatMul(r, w2)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (8, 16)), ("w2", (16, 4))):
        tensor = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        found = next(v for node in model.graph for v in node.inputs if v and v.name == name)
        found.const_value = tensor
        found.shape, found.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(found)
    for node in model.graph:
        node.name = f"n_{node.outputs[0].name}"
    mark_origins(model)
    return model


def batch(seed: int, rows: int = 2, length: int = 5, kept: int | None = None) -> Feed:
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, length), np.int64)
    if kept is not None:
        mask[:, kept:] = 0
    x = rng.standard_normal((rows, length, 8)).astype(np.float32)
    return {"x": x, "attention_mask": mask}


def test_variable_shapes_stream_in_one_pass_and_the_model_is_left_alone() -> None:
    model = encoder()
    before = model_text(model)
    reads = []

    def data() -> Iterator[Feed]:
        for index, length in enumerate((3, 7, 5)):
            reads.append(index)
            yield batch(index, rows=1 + index, length=length)

    done = []
    feeds = open_feeds(data(), input_specs(model))
    found = collect(
        model, {"x": U8, "r": U8}, feeds, OPTIONS, lambda now, total: done.append((now, total))
    )
    assert reads == [0, 1, 2]
    assert done == [(1, None), (2, None), (3, None)]
    assert (found.feeds, found.samples) == (3, 6)
    assert model_text(model) == before
    xs = [batch(i, 1 + i, n)["x"] for i, n in enumerate((3, 7, 5))]
    exact = found.range_of("x", U8, CalibrationOptions(method="minmax"))
    assert exact.lo == min(x.min() for x in xs)
    assert exact.hi == max(x.max() for x in xs)
    mean = np.concatenate([x.reshape(-1, 8) for x in xs]).mean(axis=0)
    np.testing.assert_allclose(found.channel_mean("x"), mean, rtol=1e-5, atol=1e-6)
    assert found.summaries["x"].histogram.total == sum(x.size for x in xs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spec", [U8, S8], ids=str)
def test_every_method_gives_a_range_within_the_extremes(method: str, spec: QSpec) -> None:
    found = collect(encoder(), ["x", "r"], [batch(i) for i in range(8)], OPTIONS)
    for name in ("x", "r"):
        extremes = found.range_of(name, spec, CalibrationOptions(method="minmax"))
        options = CalibrationOptions(method=method)  # type: ignore[arg-type]
        chosen = found.range_of(name, spec, options)
        assert chosen.lo.dtype == chosen.hi.dtype == np.float32
        assert chosen.lo.shape == chosen.hi.shape == ()
        bound = max(-extremes.lo, extremes.hi)
        assert chosen.lo >= (-bound if spec.symmetric else extremes.lo) - 1e-6
        assert 0 < chosen.hi <= bound * (1 + 1e-6)
        assert chosen.method.startswith(method) or method == "auto"


def test_padding_is_left_out_where_the_mask_says_so() -> None:
    feeds = [batch(i, kept=3) for i in range(3)]
    for feed in feeds:
        feed["x"][:, 3:] = 1000.0  # what padding may hold is nobody's business
    found = collect(encoder(), ["x", "r"], feeds, OPTIONS)
    kept = np.concatenate([feed["x"][:, :3].reshape(-1, 8) for feed in feeds])
    assert found.summaries["x"].extremes.hi == kept.max()
    assert found.summaries["x"].histogram.total == kept.size
    assert found.summaries["r"].extremes.hi < 500
    rows = found.rows("x")
    assert rows is not None
    assert len(rows) == len(kept)
    unmasked = collect(encoder(), ["x"], feeds, CalibrationOptions(mask=""))
    assert unmasked.summaries["x"].extremes.hi == 1000.0


def test_an_unknown_mask_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(QcError, match="attention_mask") as error:
        collect(encoder(), ["x"], [batch(0)], CalibrationOptions(mask="attention_maks"))
    assert error.value.code is Code.RECIPE_KEY


def with_op(text: str) -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[n, 4] x) => (float[n, 4] y) {{ {text} }}"""
    )
    for node in model.graph:
        node.name = f"n_{node.outputs[0].name}"
    mark_origins(model)
    return model


def test_infinities_of_a_mask_are_left_out_and_told_once() -> None:
    model = with_op("zero = Constant<value_float=0.0>() m = Div(x, zero) y = Add(x, m)")
    x = np.array([[-1.0, -2.0, 0.5, 3.0]], np.float32)
    big = with_op("l = Log(x) y = Add(x, l)")
    found = collect(big, ["l"], [{"x": np.abs(x)}, {"x": np.zeros((1, 4), np.float32)}], OPTIONS)
    assert found.summaries["l"].extremes.lo == np.log(np.float32(0.5))
    (told,) = [d for d in found.diagnostics if d.code is Code.INFINITE_IGNORED]
    assert told.values["count"] == 4
    assert "n_l" in told.where
    only = collect(model, ["m"], [{"x": x}], OPTIONS)
    assert np.isfinite(only.range_of("m", U8, OPTIONS).hi)


def test_nan_is_an_error_that_names_the_users_node_and_the_feed() -> None:
    model = with_op("bad = Sqrt(x) y = Add(x, bad)")
    feeds = [{"x": np.ones((1, 4), np.float32)}, {"x": -np.ones((1, 4), np.float32)}]
    with pytest.raises(QcError, match="feed 1") as error:
        collect(model, ["bad"], feeds, OPTIONS)
    assert error.value.code is Code.NOT_FINITE
    assert "n_bad" in error.value.diagnostic.where


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_tensor_is_told_and_has_a_usable_range(method: str) -> None:
    model = with_op("dead = Sub(x, x) y = Add(x, dead)")
    found = collect(model, ["dead"], [{"x": np.ones((9, 4), np.float32)}], OPTIONS)
    chosen = found.range_of("dead", U8, CalibrationOptions(method=method))  # type: ignore[arg-type]
    assert (chosen.lo, chosen.hi) == (0, 1)
    assert [d.code for d in found.diagnostics] == [Code.DEAD_TENSOR]


def test_few_samples_are_told() -> None:
    found = collect(encoder(), ["x"], [batch(0)], OPTIONS)
    assert [d.code for d in found.diagnostics] == [Code.FEW_SAMPLES]


def test_no_feeds_and_unknown_values_are_errors() -> None:
    with pytest.raises(QcError) as error:
        collect(encoder(), ["x"], [], OPTIONS)
    assert error.value.code is Code.EMPTY_CALIBRATION
    with pytest.raises(QcError) as error:
        collect(encoder(), ["nowhere"], [batch(0)], OPTIONS)
    assert error.value.code is Code.BAD_PLAN
    assert collect(encoder(), [], [], OPTIONS).summaries == {}


def test_state_does_not_grow_with_the_data() -> None:
    few = collect(encoder(), ["x", "r"], [batch(0, 200)], OPTIONS)
    many = collect(encoder(), ["x", "r"], (batch(i, 200) for i in range(12)), OPTIONS)
    assert many.nbytes == few.nbytes
    assert many.samples == 12 * few.samples


def test_auto_gives_up_an_outlier_that_the_reader_does_not_weigh() -> None:
    model = encoder()
    weight = model.graph.initializers["w1"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[7] = 0.0  # the layer does not read channel 7
    weight.const_value = ir.tensor(array, name="w1")
    feeds = [batch(i, 8) for i in range(6)]
    for feed in feeds:
        feed["x"][..., 7] *= 300
    found = collect(model, ["x"], feeds, OPTIONS)
    plain = found.range_of("x", U8, CalibrationOptions(method="mse"))
    judged = found.range_of("x", U8, OPTIONS)
    x = np.concatenate([feed["x"].reshape(-1, 8) for feed in feeds])

    def output_error(lo: float, hi: float) -> float:
        scale = (hi - lo) / 255
        zero = round(-lo / scale)
        back = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
        return float(np.square((x - back) @ array).mean())

    judged_error = output_error(float(judged.lo), float(judged.hi))
    assert judged_error < 0.5 * output_error(float(plain.lo), float(plain.hi))


def test_merged_statistics_are_those_of_all_the_data() -> None:
    feeds = [batch(i, 3) for i in range(6)]
    whole = collect(encoder(), ["x", "r"], feeds, OPTIONS)
    first = collect(encoder(), ["x", "r"], feeds[:2], OPTIONS)
    first.merge(collect(encoder(), ["x", "r"], feeds[2:], OPTIONS))
    assert (first.feeds, first.samples) == (6, 18)
    for name in ("x", "r"):
        one, other = first.summaries[name], whole.summaries[name]
        np.testing.assert_array_equal(one.histogram.counts, other.histogram.counts)
        for method in METHODS[1:]:
            options = CalibrationOptions(method=method)  # type: ignore[arg-type]
            a, b = first.range_of(name, U8, options), whole.range_of(name, U8, options)
            np.testing.assert_allclose((a.lo, a.hi), (b.lo, b.hi), rtol=1e-6)
    with pytest.raises(QcError) as error:
        first.merge(collect(encoder(), ["x"], feeds, OPTIONS))
    assert error.value.code is Code.SUMMARY_MISMATCH


def test_saved_statistics_come_back_and_go_on(tmp_path: pathlib.Path) -> None:
    model, path = encoder(), tmp_path / "summary.npz"
    feeds = [batch(i, 3) for i in range(6)]
    first = collect(model, ["x", "r"], feeds[:3], OPTIONS)
    first.save(path, model)
    loaded = Statistics.load(path, model, ["x", "r"])
    assert (loaded.feeds, loaded.samples) == (3, 9)
    for name in ("x", "r"):
        assert loaded.range_of(name, U8, OPTIONS) == first.range_of(name, U8, OPTIONS)
    loaded.merge(collect(model, ["x", "r"], feeds[3:], OPTIONS))
    whole = collect(model, ["x", "r"], feeds, OPTIONS)
    minmax = CalibrationOptions(method="percentile")
    assert loaded.range_of("r", U8, minmax) == whole.range_of("r", U8, minmax)


def test_a_summary_of_another_model_or_plan_is_refused(tmp_path: pathlib.Path) -> None:
    model, path = encoder(), tmp_path / "summary.npz"
    collect(model, ["x"], [batch(0)], OPTIONS).save(path, model)
    with pytest.raises(QcError, match="planned values") as error:
        Statistics.load(path, model, ["x", "r"])
    assert error.value.code is Code.SUMMARY_MISMATCH
    weight = model.graph.initializers["w1"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name="w1")
    with pytest.raises(QcError, match="the summary is of model") as error:
        Statistics.load(path, model)
    assert error.value.code is Code.SUMMARY_MISMATCH
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(QcError) as error:
        Statistics.load(path, model)
    assert error.value.code is Code.CALIBRATION_SOURCE


def test_a_model_the_runtime_cannot_run_is_told() -> None:
    model = with_op("b = Scale(x) y = Add(x, b)")
    with pytest.raises(QcError) as error:
        collect(model, ["b"], [{"x": np.ones((1, 4), np.float32)}], OPTIONS)
    assert error.value.code is Code.FLOAT_MODEL_FAILS

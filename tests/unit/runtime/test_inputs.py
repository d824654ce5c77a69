"""Feeds: checked against what a model takes, or made up so that it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import name_everything
from qcompiler.runtime.inputs import InputSpec, check_feed, generate_feed, input_specs
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.trial_feeds import runnable_feed
from qcompiler_models import tiny

IDS = InputSpec("ids", np.dtype(np.int64), ("batch", "sequence"))
MASK = InputSpec("mask", np.dtype(np.float32), ("batch", "sequence"))
IMAGE = InputSpec("image", np.dtype(np.float32), (None, 3, 8, 8))


def refused(feed: dict[str, Any], *specs: InputSpec) -> QcError:
    with pytest.raises(QcError) as caught:
        check_feed(feed, specs)
    return caught.value


def test_a_right_feed_passes_as_it_is() -> None:
    ids = np.zeros((2, 5), np.int64)
    assert check_feed({"ids": ids}, [IDS])["ids"] is ids


@pytest.mark.parametrize(("given", "dtype"), [(np.int32, np.int64), (np.float16, np.float32)])
def test_widening_loses_nothing_and_is_done(given: type, dtype: type) -> None:
    spec = InputSpec("x", np.dtype(dtype), (2,))
    assert check_feed({"x": np.ones(2, given)}, [spec])["x"].dtype == dtype


@pytest.mark.parametrize("given", [np.float64, np.int32, np.bool_])
def test_other_types_are_refused_with_the_conversion(given: type) -> None:
    error = refused({"image": np.ones((1, 3, 8, 8), given)}, IMAGE)
    assert error.code is Code.FEED_DTYPE
    assert ".astype('float32')" in error.diagnostic.hint


def test_a_wrong_name_is_refused_with_the_nearest() -> None:
    error = refused({"id": np.zeros((1, 1), np.int64)}, IDS)
    assert error.code is Code.FEED_NAME
    assert "did you mean 'ids'" in error.diagnostic.hint


def test_a_missing_input_is_named() -> None:
    error = refused({"ids": np.zeros((1, 1), np.int64)}, IDS, MASK)
    assert error.code is Code.FEED_NAME
    assert error.diagnostic.where == "mask"


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8)])
def test_a_wrong_shape_is_refused_with_what_was_wanted(shape: tuple[int, ...]) -> None:
    error = refused({"image": np.ones(shape, np.float32)}, IMAGE)
    assert error.code is Code.FEED_SHAPE
    assert str(list(shape)) in str(error)


def test_dimensions_named_alike_must_be_equal() -> None:
    feed = {"ids": np.zeros((2, 5), np.int64), "mask": np.zeros((2, 6), np.float32)}
    error = refused(feed, IDS, MASK)
    assert error.code is Code.FEED_SHAPE
    assert "'sequence' is 5 by axis 1 of ids" in str(error)


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_a_generated_feed_runs_every_tiny_model(name: str) -> None:
    model = tiny.build(name)
    feed = generate_feed(model)
    check_feed(feed, input_specs(model))
    assert run(open_session(model), feed)


def test_generated_feeds_are_repeatable_and_follow_the_seed() -> None:
    model = tiny.build("mlp")
    one, same, other = (generate_feed(model, seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_generated_indices_stay_below_the_smallest_table() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[batch, seq] ids, int64[batch, seq] attention_mask) => (float[batch, seq, 2] y)
        <float[50, 2] large = {0}, float[7, 2] small = {0}> {
            a = Gather(large, ids)
            i = Cast <to = 6> (ids)
            b = Gather(small, i)
            m = Cast <to = 1> (attention_mask)
            y = Add(a, b)
        }"""
    )
    name_everything(model)
    for name, rows in (("large", 50), ("small", 7)):
        model.graph.initializers[name].const_value = ir.tensor(np.zeros((rows, 2), np.float32))
    feed = generate_feed(model, dims={"batch": 3, "seq": 100})
    assert feed["ids"].shape == (3, 100)
    assert feed["ids"].max() == 6
    assert (feed["attention_mask"] == 1).all()


def speech(state: str = "2, S, 8") -> ir.Model:
    """Windows of more than 64 samples, and a state whose second dimension is the batch."""
    return _parsed(
        f"float[B,T] x, float[{state}] state",
        """p = Pad<mode = "reflect">(x, ENDS)  m = ReduceMean<axes = [1], keepdims = 1>(p)
        u = Unsqueeze(m, FIRST)  t = Tile(u, TWICE)  y = Concat<axis = 2>(state, t)""",
        "int64[4] ENDS = {0, 64, 0, 64}, int64[1] FIRST = {0}, int64[3] TWICE = {2, 1, 1}",
    )


def _parsed(inputs: str, body: str, constants: str = "float[1] C = {1.0}") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
    g ({inputs}) => (float[...] y) <{constants}> {{ {body} }}"""
    model = ir.from_onnx_text(text.replace("float[...]", "float"))
    name_everything(model)
    return model


def test_sizes_that_nothing_states_are_tried_until_the_model_runs() -> None:
    feed = runnable_feed(speech())
    assert feed["x"].shape[1] > 64
    assert feed["state"].shape[1] == feed["x"].shape[0]
    run(open_session(speech()), feed)


def test_a_feed_of_stated_sizes_is_the_usual_one() -> None:
    model = _parsed("float[2,3] x", "y = Neg(x)")
    np.testing.assert_array_equal(runnable_feed(model)["x"], generate_feed(model)["x"])


def test_where_no_size_runs_the_user_is_asked_for_data() -> None:
    model = _parsed("float[N] x", "y = Reshape(x, C)", "int64[1] C = {7}")
    with pytest.raises(QcError, match=r"float32\[2\]") as caught:
        runnable_feed(model)
    assert caught.value.code is Code.FLOAT_MODEL_FAILS
    assert "1 of other sizes fail, too: give calibration data" in caught.value.diagnostic.hint


def test_a_model_that_does_not_load_is_told_without_a_word_about_sizes() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "my.ops" : 1]>
    g (float[N] x) => (float[N] y) { y = my.ops.Odd(x) }"""
    with pytest.raises(QcError, match="Odd") as caught:
        runnable_feed(ir.from_onnx_text(text))
    assert "sizes" not in caught.value.diagnostic.hint


@pytest.mark.parametrize(
    ("inputs", "body", "constants", "shape"),
    [
        ("float[N] x", "y = MatMul(x, W)", "float[3,2] W = {1.0,2.0,3.0,4.0,5.0,6.0}", (3,)),
        (
            "float[A,B,C,D] x",
            "t = Transpose<perm = [0,3,1,2]>(x)  s = Sub(t, M)  y = Conv(s, W)",
            "float[1,3,1,1] W = {1.0,2.0,3.0}, float[1] M = {0.5}",
            (2, 32, 32, 3),
        ),
        (
            "float[A,B] x",
            "y = Gemm<transB = 1>(x, W)",
            "float[2,3] W = {1.0,2.0,3.0,4.0,5.0,6.0}",
            (2, 3),
        ),
        ("float[A,B] x", "y = Add(x, M)", "float[3] M = {1.0,2.0,3.0}", (2, 3)),
    ],
)
def test_sizes_that_constants_tell_are_taken(
    inputs: str, body: str, constants: str, shape: tuple[int, ...]
) -> None:
    model = _parsed(inputs, body, constants)
    dims = {"B": 32, "C": 32} if len(shape) == 4 else None
    feed = generate_feed(model, dims=dims)
    assert feed["x"].shape == shape
    run(open_session(model), feed)

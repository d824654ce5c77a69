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

"""Rounded weights come back from their files as they went in."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from qcompiler.algorithms.double_quantization import with_quantized_scales
from qcompiler.algorithms.rtn import round_to_nearest
from qcompiler.diagnostics import Code, QcError
from qcompiler.schemes import QSpec
from qcompiler.stages.store import StoredWeights, WeightStore

WEIGHT = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
SITE = ("model.layers.0/q_proj:MatMul", 1)


@pytest.mark.parametrize(
    "text", ["u4g16@0z", "u4g16@0", "s8c@1", "e4m3c@1", "nf4g16@0", "u4r3g8@0"]
)
def test_every_format_comes_back(text: str, tmp_path: pathlib.Path) -> None:
    tensor = round_to_nearest(WEIGHT, QSpec.parse(text))
    WeightStore(tmp_path).put(SITE, "key", tensor)
    found = WeightStore(tmp_path).get(SITE, "key")
    assert found.spec == tensor.spec
    assert found.q.dtype == tensor.q.dtype
    np.testing.assert_array_equal(found.dequantize(), tensor.dequantize())
    assert (found.zero_point is None) == (tensor.zero_point is None)


def test_quantized_scales_come_back(tmp_path: pathlib.Path) -> None:
    tensor = round_to_nearest(WEIGHT, QSpec.parse("u4g8@0z"))
    double = with_quantized_scales(tensor, QSpec.parse("u8g16@0z"), WEIGHT)
    WeightStore(tmp_path).put(SITE, "key", double)
    found = WeightStore(tmp_path).get(SITE, "key")
    assert found.stored_scale is not None
    np.testing.assert_array_equal(found.stored_scale.q, double.stored_scale.q)  # type: ignore[union-attr]
    np.testing.assert_array_equal(found.dequantize(), double.dequantize())


def test_site_and_key_tell_files_apart(tmp_path: pathlib.Path) -> None:
    store = WeightStore(tmp_path)
    tensor = round_to_nearest(WEIGHT, QSpec.parse("u4g16@0z"))
    store.put(SITE, "a", tensor)
    assert store.has(SITE, "a")
    assert not store.has(SITE, "b")
    assert not store.has((SITE[0].replace("/", ":"), 1), "a")
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    held = {("other", 1): tensor, SITE: tensor}
    both = StoredWeights(held, store, {SITE: "a"})
    assert sorted(both) == sorted(held)
    np.testing.assert_array_equal(both[SITE].q, tensor.q)


def test_a_temporary_store_goes_with_its_owner() -> None:
    store = WeightStore()
    folder = store.folder
    assert folder.is_dir()
    del store
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QcError) as found:
        WeightStore(tmp_path / "file" / "store")
    assert found.value.code is Code.NOT_WRITABLE

"""Weights that stay in their ONNX file."""

import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qcompiler import QcError
from qcompiler.diagnostics import Code
from qcompiler.frontends.onnx.door import open_file
from qcompiler.frontends.onnx.file_weights import attach, read_file

LARGE = (256, 128)  # float32: above the size that is left in the file
CONSTANT = onnx.TensorProto.FLOAT


def saved(path: pathlib.Path, *tensors: onnx.TensorProto, doc: str = "") -> pathlib.Path:
    x, y = (onnx.helper.make_tensor_value_info(name, CONSTANT, LARGE) for name in "xy")
    node = onnx.helper.make_node("Add", ["x", tensors[0].name], ["y"], doc_string=doc)
    graph = onnx.helper.make_graph([node], "g", [x], [y], list(tensors))
    imports = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def weight(name: str, dtype: type = np.float32, shape: tuple[int, ...] = LARGE) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).integers(-100, 100, shape).astype(dtype)
    return numpy_helper.from_array(values, name)


@given(st.text(max_size=9), st.lists(st.sampled_from([np.float32, np.float16, np.int64, np.int8])))
def test_the_model_is_that_of_onnx(
    tmp_path_factory: pytest.TempPathFactory, doc: str, dtypes: list[type]
) -> None:
    others = [weight(f"w{i}{doc}", dtype, (257, 129)) for i, dtype in enumerate(dtypes)]
    path = saved(tmp_path_factory.mktemp("m") / "m.onnx", weight("w"), *others, doc=doc)
    whole = onnx.load(path)
    proto, weights = read_file(path)
    model = ir.from_proto(proto)
    attach(model, weights)
    assert "w" in weights
    for tensor in whole.graph.initializer:
        found = model.graph.initializers[tensor.name].const_value
        assert found is not None
        array = numpy_helper.to_array(tensor)
        assert found.numpy().dtype == array.dtype
        assert found.numpy().flags.aligned
        np.testing.assert_array_equal(found.numpy(), array)
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    assert proto == whole


def test_small_packed_and_wrong_tensors_are_left_to_the_parser(tmp_path: pathlib.Path) -> None:
    four = onnx.helper.make_tensor("four", onnx.TensorProto.INT4, (512, 512), bytes(1 << 17), True)
    wrong = weight("wrong")
    wrong.dims[0] += 1
    path = saved(tmp_path / "m.onnx", weight("w"), weight("small", shape=(4,)), four, wrong)
    assert list(read_file(path)[1]) == ["w"]
    with pytest.raises(QcError, match="wrong") as caught:
        open_file(path)
    assert caught.value.code is Code.INVALID_GRAPH


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_file_that_ends_early_is_refused(tmp_path: pathlib.Path, share: float) -> None:
    path = saved(tmp_path / "m.onnx", weight("w"), weight("v"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(QcError) as caught:
        open_file(path)
    assert caught.value.code is Code.NOT_ONNX

"""ONNX models at the door: taken, normalised, or refused with what was found and wanted."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.ir.legality import violations
from qcompiler.ir.provenance import origins
from qcompiler.ir.text import model_text
from qcompiler.ir.walk import all_nodes
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.session import open_session, run
from qcompiler_models import tiny


def refused(model: object, code: Code) -> QcError:
    with pytest.raises(QcError) as caught:
        open_model(model)
    assert caught.value.code is code
    return caught.value


def parsed(body: str, opset: int = 17, ir_version: int = 10) -> onnx.ModelProto:
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "my.ops" : 1]>'
    return onnx.parser.parse_model(f"{head}\n{body}")


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_a_model_comes_in_alike_as_ir_as_protobuf_and_as_file(
    name: str, tmp_path: pathlib.Path
) -> None:
    model = tiny.build(name)
    before = model_text(model)
    proto = ir.to_proto(model)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    opened = [open_model(model), open_model(proto), open_model(path), open_model(str(path))]
    assert len({model_text(item.model) for item in opened}) == 1
    assert model_text(model) == before
    assert violations(opened[0].model) == []
    feed = generate_feed(opened[0].model)
    assert run(open_session(opened[0].model), feed).keys() == run(open_session(path), feed).keys()


def test_every_node_stands_for_itself() -> None:
    opened = open_model(tiny.build("convnet"))
    assert all(origins(node) == (node.name,) for node in all_nodes(opened.model))


def test_constant_nodes_become_initializers() -> None:
    opened = open_model(tiny.build("constant_weights"))
    assert not any(node.op_type == "Constant" for node in all_nodes(opened.model))
    assert opened.model.graph.initializers


def test_bodies_of_control_flow_are_kept() -> None:
    kinds = {node.op_type for node in all_nodes(open_model(tiny.build("control_flow")).model)}
    assert kinds & {"If", "Loop"}


def test_a_half_precision_model_stays_half_precision() -> None:
    model = open_model(tiny.build("half")).model
    assert model.graph.inputs[0].dtype is ir.DataType.FLOAT16
    assert run(open_session(model), generate_feed(model))


def test_functions_are_inlined_and_custom_operators_kept() -> None:
    proto = parsed(
        """g (float[N] x) => (float[N] y) { a = my.ops.twice(x)
           b = my.ops.mystery(a)
           y = Neg(b) }
        <domain: "my.ops", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    model = open_model(proto).model
    assert [node.op_type for node in model.graph] == ["Add", "mystery", "Neg"]
    assert not model.functions


def test_an_input_with_a_default_becomes_a_constant_and_is_told() -> None:
    proto = parsed("g (float[2] x, float[2] w = {1.0, 2.0}) => (float[2] y) { y = Add(x, w) }")
    opened = open_model(proto)
    assert [value.name for value in opened.model.graph.inputs] == ["x"]
    assert [item.code for item in opened.diagnostics] == [Code.DEFAULT_INPUT]


def test_old_files_that_list_weights_as_inputs_are_not_told_of_it() -> None:
    body = "g (float[2] x, float[2] w = {1.0, 2.0}) => (float[2] y) { y = Add(x, w) }"
    opened = open_model(parsed(body, opset=11, ir_version=3))
    assert opened.diagnostics == ()
    assert run(open_session(opened.model), {"x": np.ones(2, np.float32)})["y"].tolist() == [2, 3]


def test_unnamed_and_doubly_named_nodes_get_names() -> None:
    model = open_model(
        parsed("g (float[N] x) => (float[N] y) { a = Neg(x)\n b = Neg(a)\n y = Neg(b) }")
    ).model
    assert len({node.name for node in model.graph}) == 3


def test_negative_sizes_mean_any_size() -> None:
    model = tiny.build("mlp")
    model.graph.inputs[0].shape = ir.Shape([-1, 16])
    shape = open_model(model).model.graph.inputs[0].shape
    assert shape is not None
    assert not isinstance(shape[0], int)


def test_a_graph_out_of_order_is_sorted() -> None:
    proto = parsed("g (float[N] x) => (float[N] y) { a = Neg(x)\n b = Abs(a)\n y = Exp(b) }")
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert [n.op_type for n in open_model(proto).model.graph] == ["Neg", "Abs", "Exp"]


def test_what_only_a_body_reads_is_sorted_in_front_of_it() -> None:
    proto = parsed(
        """g (bool c, float[N] x) => (float[N] y) {
            y = If(c) <then_branch = t () => (float[N] p) { p = Neg(h) },
                       else_branch = e () => (float[N] q) { q = Abs(h) }>
            h = Relu(x)
        }"""
    )
    assert [n.op_type for n in open_model(proto).model.graph] == ["Relu", "If"]


@pytest.mark.parametrize(
    ("op", "quantized"), [("Neg(x)", False), ("DynamicQuantizeLinear(x)", True)]
)
def test_quantized_models_are_recognised(op: str, quantized: bool) -> None:
    outputs = "y, s, z" if quantized else "y"
    proto = parsed(f"g (float[N] x) => (float[N] r) {{ {outputs} = {op}\n r = Identity(x) }}")
    assert open_model(proto).quantized is quantized


def test_a_missing_file_is_said_to_be_missing(tmp_path: pathlib.Path) -> None:
    assert "nope.onnx" in str(refused(tmp_path / "nope.onnx", Code.NO_FILE))


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x08\x07"])
def test_files_that_are_not_onnx_are_refused(content: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, Code.NOT_ONNX)


def test_a_truncated_file_is_refused(tmp_path: pathlib.Path) -> None:
    data = ir.to_proto(tiny.build("mlp")).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: len(data) // 2])
    refused(path, Code.NOT_ONNX)


def test_a_folder_names_the_model_inside(tmp_path: pathlib.Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"")
    error = refused(tmp_path, Code.UNSUPPORTED_INPUT)
    assert "encoder.onnx" in error.diagnostic.hint


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_weight_files_are_refused_with_the_way_to_do_it(
    suffix: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"")
    assert "weights_only=True" in refused(path, Code.UNSUPPORTED_INPUT).diagnostic.hint


def test_an_opset_of_the_future_is_refused_with_its_number() -> None:
    proto = parsed("g (float[N] x) => (float[N] y) { y = Neg(x) }", opset=999)
    assert "opset 999" in str(refused(proto, Code.UNKNOWN_OPSET))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("a = Neg(x)\n y = Add(a, ghost)", "ghost"),
        ("a = Neg(b)\n b = Neg(a)\n y = Add(b, x)", "cycle"),
        ("a = Neg(x)\n a = Abs(x)\n y = Add(a, a)", "a"),
        ("y = Nag(x)", "did you mean 'Neg'"),
        ("y = RMSNormalization(x, x)", "opset 17"),
    ],
)
def test_illegal_graphs_are_refused(body: str, word: str) -> None:
    proto = parsed(f"g (float[N] x) => (float[N] y) {{ {body} }}")
    assert word in str(refused(proto, Code.INVALID_GRAPH))


@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_sparse_tensors_are_refused_as_such(place: str) -> None:
    values = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([1, 3]))
    sparse = onnx.helper.make_sparse_tensor(values, indices, [4])
    proto = parsed("g (float[4] x) => (float[4] y) { y = Add(x, w) }")
    if place == "initializer":
        proto.graph.sparse_initializer.append(sparse)
    else:
        node = onnx.helper.make_node("Constant", [], ["w"], sparse_value=sparse)
        proto.graph.node.insert(0, node)
    assert "dense" in str(refused(proto, Code.UNSUPPORTED_INPUT))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = tiny.build("mlp")
    weight = model.graph.initializers["fc1.weight"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0, 0] = value
    weight.const_value = ir.tensor(array, name="fc1.weight")
    assert "fc1.weight" in str(refused(model, Code.NOT_FINITE_WEIGHT))


def test_infinity_in_a_mask_is_allowed() -> None:
    proto = parsed("g (float[2] x) => (float[2] y) <float[2] m = {0.0, 0.0}> { y = Add(x, m) }")
    mask = proto.graph.initializer[0]
    mask.CopyFrom(onnx.numpy_helper.from_array(np.array([0, -np.inf], np.float32), "m"))
    assert open_model(proto).model.graph.initializers


def test_what_is_no_model_is_refused_by_its_type() -> None:
    assert "builtins.dict" in str(refused({"a": 1}, Code.UNSUPPORTED_INPUT))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = MatMul(x)", "has 1 inputs, wanted 2"),
        ('y = Transpose<perm = "abc">(x)', "has 'perm' of type STRING, wanted INTS"),
        ("y = Cast(x)", "lacks the attribute 'to'"),
        ("y = Relu(x, x)", "has 2 inputs, wanted 1"),
        ("y, z = Relu(x)", "has 2 outputs, wanted 1"),
    ],
)
def test_operators_that_are_used_as_none_are_named(body: str, said: str) -> None:
    error = refused(parsed(f"g (float[2,2] x) => (float[2,2] y) {{ {body} }}"), Code.INVALID_GRAPH)
    assert said in error.diagnostic.message


def test_maps_are_refused_with_the_way_to_do_without() -> None:
    proto = parsed("g (float[2,2] x) => (float[2,2] y) { y = Relu(x) }")
    kind = proto.graph.output.add(name="probabilities").type.sequence_type.elem_type.map_type
    kind.key_type = onnx.TensorProto.INT64
    kind.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    error = refused(proto, Code.UNSUPPORTED_INPUT)
    assert "'probabilities' is a map" in error.diagnostic.message
    assert "zipmap" in error.diagnostic.hint


@pytest.mark.parametrize(("offset", "said"), [("-4", "-4"), ("abc", "'abc'")])
def test_an_external_offset_that_is_none_is_told_as_it_is(
    offset: str, said: str, tmp_path: pathlib.Path
) -> None:
    proto = ir.to_proto(tiny.build("mlp"))
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", offset)):
            tensor.external_data.add(key=key, value=value)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(QcError) as caught:
        open_model(path)
    assert said in str(caught.value)
    assert "lambda" not in str(caught.value)

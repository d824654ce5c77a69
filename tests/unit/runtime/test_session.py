"""Sessions on models in memory give what sessions on files give."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import name_everything
from qcompiler.ir.text import model_text
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import Level, SessionSettings
from qcompiler_models import tiny


def wide(body: str = "y = MatMul(x, w)") -> ir.Model:
    """A model whose weight is large enough to be lent."""
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    model = ir.from_onnx_text(
        f"{head} g (float[N, 64] x, bool c) => (float[N, 64] y) "
        f"<float[64, 64] w = {{0}}> {{ {body} }}"
    )
    array = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    name_everything(model)
    return model


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "layout", "all"])
def test_lent_weights_give_the_same_numbers_as_a_file(level: Level, tmp_path: pathlib.Path) -> None:
    model = wide()
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(model), path)
    settings = SessionSettings(level)
    feed = generate_feed(model)
    ours = run(open_session(model, settings=settings, threads=1), feed)["y"]
    theirs = run(open_session(path, settings=settings, threads=1), feed)["y"]
    np.testing.assert_array_equal(ours, theirs)


def test_a_session_leaves_the_model_as_it_was() -> None:
    model = wide()
    before, tensor = model_text(model), model.graph.initializers["w"].const_value
    open_session(model)
    assert model_text(model) == before
    assert model.graph.initializers["w"].const_value is tensor


def test_a_session_outlives_its_model() -> None:
    model = wide()
    feed = generate_feed(model)
    session = open_session(model)
    before = run(session, feed)["y"]
    del model
    noise = [np.full((64, 64), np.nan, np.float32) for _ in range(100)]
    np.testing.assert_array_equal(run(session, feed)["y"], before)
    assert len(noise) == 100


def test_a_weight_nobody_reads_is_no_trouble() -> None:
    model = wide("y = Neg(x)")
    assert run(open_session(model), generate_feed(model))


def test_a_weight_read_only_inside_a_body_is_lent() -> None:
    model = wide(
        "y = If(c) <then_branch = t () => (float[N, 64] a) { a = MatMul(x, w) }, "
        "else_branch = e () => (float[N, 64] b) { b = Neg(x) }>"
    )
    assert run(open_session(model), generate_feed(model))["y"].shape == (2, 64)


def test_the_optimized_graph_is_written(tmp_path: pathlib.Path) -> None:
    open_session(wide(), optimized_path=tmp_path / "optimized.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["MatMul"]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(QcError, match="cannot write its optimized graph") as caught:
        open_session(tiny.build("mlp"), optimized_path=pathlib.Path("/dev/full"))
    assert caught.value.code is Code.NOT_WRITABLE
    assert "TMPDIR" in caught.value.diagnostic.hint


def test_what_the_runtime_refuses_is_told_in_its_words() -> None:
    model = wide("y = Reshape(x, x)")
    with pytest.raises(QcError, match="QC606") as caught:
        open_session(model)
    assert "Reshape" in str(caught.value)


def test_a_run_that_fails_tells_the_shapes_it_was_fed() -> None:
    with pytest.raises(QcError) as caught:
        run(open_session(wide()), {"x": np.ones((2, 3), np.float32), "c": np.array(True)})
    assert caught.value.code is Code.FLOAT_MODEL_FAILS
    assert "x float32[2, 3]" in str(caught.value)


def test_one_output_of_several_can_be_asked_for() -> None:
    model = tiny.build("mlp")
    name = model.graph.outputs[0].name
    assert name is not None
    assert list(run(open_session(model), generate_feed(model), [name])) == [name]


def test_mapped_weights_of_types_that_cannot_be_lent_are_read(tmp_path: pathlib.Path) -> None:
    array = (np.arange(8192) % 16 - 8).astype(np.int8)
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1] s) => (float[8192] y) <int8[1] w = {0}> { y = DequantizeLinear (w, s) }"""
    )
    packed = ir.tensor(array.reshape(-1), dtype=ir.DataType.INT4, name="w")
    (tmp_path / "w.bin").write_bytes(packed.tobytes())
    weight = model.graph.initializers["w"]
    weight.const_value = ir.ExternalTensor(
        "w.bin", 0, packed.nbytes, packed.dtype, shape=ir.Shape([8192]), name="w", base_dir=tmp_path
    )
    weight.type, weight.shape = ir.TensorType(packed.dtype), ir.Shape([8192])
    name_everything(model)
    model.graph.inputs[0].shape = ir.Shape([])
    y = run(open_session(model), {"s": np.array(2.0, np.float32)})["y"]
    np.testing.assert_array_equal(y, array.astype(np.float32) * 2)


@pytest.mark.parametrize(("word", "told"), [("bfloat16", True), ("int8", False)])
def test_a_type_without_kernels_is_named(word: str, told: bool) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g ({word}[2,4] x, {word}[4,4] w) => ({word}[2,4] y) {{ [fc] y = MatMul(x, w) }}"""
    )
    with pytest.raises(QcError) as caught:
        open_session(model)
    assert ("bfloat16: export the model in float32" in caught.value.diagnostic.hint) is told

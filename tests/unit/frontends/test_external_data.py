"""External data: mapped from the model's own folder, and from nowhere else."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler import Artifact, qcompile
from qcompiler.cli.opt import run_opt
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.session import open_session, run
from qcompiler_models import tiny


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "model"
    folder.mkdir()
    model = tiny.build("mlp")
    wide = np.random.default_rng(0).standard_normal((16, 512)).astype(np.float32)
    model.graph.register_initializer(
        ir.Value(name="wide", const_value=ir.tensor(wide, name="wide"))
    )
    path = folder / "model.onnx"
    ir.save(model, path, external_data="weights.bin", size_threshold_bytes=0)
    return path


def refused(model: object) -> str:
    with pytest.raises(QcError) as caught:
        open_model(model)
    assert caught.value.code is Code.EXTERNAL_DATA
    return str(caught.value)


def relocate(path: pathlib.Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(proto, path)


def test_external_weights_are_mapped_and_small_ones_read(saved: pathlib.Path) -> None:
    opened = open_model(saved)
    tensors = {n: v.const_value for n, v in opened.model.graph.initializers.items()}
    assert isinstance(tensors["wide"], ir.ExternalTensor)
    assert isinstance(tensors["fc1.bias"], ir.Tensor)
    feed = generate_feed(opened.model)
    ours, theirs = run(open_session(opened.model), feed), run(open_session(saved), feed)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def test_the_current_folder_does_not_matter(
    saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    opened = open_model(saved.name)
    monkeypatch.chdir("/")
    assert run(open_session(opened.model), generate_feed(opened.model))


def test_hard_linked_data_is_read(saved: pathlib.Path) -> None:
    os.link(saved.parent / "weights.bin", saved.parent / "twin.bin")
    assert run(open_session(m := open_model(saved).model), generate_feed(m))


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "..\\weights.bin", "C:\\w"]
)
def test_locations_outside_the_folder_are_refused(saved: pathlib.Path, location: str) -> None:
    (saved.parent.parent / "weights.bin").write_bytes(b"\0" * 100_000)
    relocate(saved, location)
    assert "external data must be in the model's folder" in refused(saved)


def test_a_link_that_leaves_the_folder_is_refused(saved: pathlib.Path) -> None:
    data = saved.parent / "weights.bin"
    data.rename(saved.parent.parent / "elsewhere.bin")
    data.symlink_to(saved.parent.parent / "elsewhere.bin")
    assert "a link to" in refused(saved)


def test_a_missing_data_file_is_named(saved: pathlib.Path) -> None:
    (saved.parent / "weights.bin").unlink()
    assert "weights.bin" in refused(saved)


def test_a_short_data_file_is_told_with_its_sizes(saved: pathlib.Path) -> None:
    data = saved.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:1000])
    text = refused(saved)
    assert "1000 bytes" in text
    assert "weights.bin" in text


def test_a_protobuf_does_not_know_its_folder(saved: pathlib.Path) -> None:
    assert "in which folder" in refused(onnx.load(saved, load_external_data=False))


def test_an_ir_model_knows_its_folder(saved: pathlib.Path) -> None:
    assert open_model(ir.load(saved)).model.graph.initializers


@pytest.mark.parametrize("recipe", ["float", "weight-int8"])
def test_an_artifact_holds_the_float_weights_of_other_files(
    saved: pathlib.Path, tmp_path: pathlib.Path, recipe: str
) -> None:
    proto = onnx.load(saved, load_external_data=False)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("wide", 1, [16, 512]))
    onnx.save(proto, saved)
    artifact = qcompile(saved, "cpu-vnni", recipe, output=tmp_path / "out")
    (saved.parent / "weights.bin").rename(tmp_path / "elsewhere")
    feed = generate_feed(artifact.model)
    found = Artifact.load(tmp_path / "out").run(feed)
    assert found["wide"].shape == (16, 512)
    deployed = run(open_session(tmp_path / "out" / "model.onnx"), feed)
    for name, array in found.items():
        np.testing.assert_allclose(deployed[name], array, atol=1e-6)


def test_a_model_that_passes_were_run_on_is_one_file(
    saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    proto = onnx.load(saved, load_external_data=False)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("wide", 1, [16, 512]))
    onnx.save(proto, saved)
    target = tmp_path / "other" / "after.onnx"
    target.parent.mkdir()
    run_opt(str(saved), "remove-dead", "cpu-vnni", None, None, target)
    (saved.parent / "weights.bin").rename(tmp_path / "elsewhere")
    session = open_session(target)
    assert run(session, generate_feed(open_model(target).model))["wide"].shape == (16, 512)

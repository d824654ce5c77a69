"""What a user can get wrong: a code, what was found and wanted, and nothing half-written."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompiler import QcError, qcompile
from qcompiler.diagnostics import Code
from qcompiler.plan import Verdict
from qcompiler_models import tiny

STATIC: dict[str, Any] = {"base": "static-int8", "force": True}
FEEDS = tiny.feeds("mlp", 2)
WIDTH = FEEDS[0]["x"].shape[1]


def refused(code: Code, *words: str, model: Any = None, **options: Any) -> QcError:
    with pytest.raises(QcError) as caught:
        qcompile(tiny.build("mlp") if model is None else model, **options)
    assert caught.value.code is code, str(caught.value)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_missing_file(tmp_path: pathlib.Path) -> None:
    refused(Code.NO_FILE, "absent.onnx", model=tmp_path / "absent.onnx")


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"\x00" * 100])
def test_a_file_that_is_not_onnx(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(Code.NOT_ONNX, "model.onnx", model=path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.98])
def test_a_truncated_file(tmp_path: pathlib.Path, share: float) -> None:
    whole = ir.to_proto(tiny.build("convnet")).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    error = refused_any(path)
    assert error.code in (Code.NOT_ONNX, Code.INVALID_GRAPH), str(error)


def refused_any(model: Any) -> QcError:
    with pytest.raises(QcError) as caught:
        qcompile(model)
    return caught.value


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin"])
def test_external_data_outside_of_the_model_folder(tmp_path: pathlib.Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    path = _with_external_data(folder, location)
    error = refused_any(path)
    assert error.code.id.startswith("QC7"), str(error)
    assert location in str(error)


def test_external_data_that_is_missing(tmp_path: pathlib.Path) -> None:
    error = refused_any(_with_external_data(tmp_path, "weights.bin"))
    assert error.code.id.startswith("QC7"), str(error)
    assert "weights.bin" in str(error)


def _with_external_data(folder: pathlib.Path, location: str) -> pathlib.Path:
    proto = ir.to_proto(tiny.build("mlp"))
    tensor = proto.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_an_object_that_is_no_model() -> None:
    refused(Code.UNSUPPORTED_INPUT, model=42)


def test_weights_that_are_not_finite() -> None:
    model = tiny.build("mlp")
    value = next(v for v in model.graph.initializers.values() if v.const_value.size > 100)
    array = value.const_value.numpy().copy()
    array.flat[3] = np.nan
    value.const_value = ir.tensor(array, name=value.name)
    error = refused(Code.NOT_FINITE_WEIGHT, model=model, recipe=STATIC, calibration=FEEDS)
    assert value.name is not None
    assert value.name in str(error)


def test_empty_calibration(tmp_path: pathlib.Path) -> None:
    refused(Code.EMPTY_CALIBRATION, recipe=STATIC, calibration=[])
    refused(Code.EMPTY_CALIBRATION, recipe=STATIC, calibration=lambda: iter(()))
    (tmp_path / "feeds").mkdir()
    error = refused_with(recipe=STATIC, calibration=tmp_path / "feeds")
    assert error.code in (Code.EMPTY_CALIBRATION, Code.CALIBRATION_SOURCE)


def refused_with(**options: Any) -> QcError:
    with pytest.raises(QcError) as caught:
        qcompile(tiny.build("mlp"), **options)
    return caught.value


def test_static_without_calibration() -> None:
    refused(Code.NEEDS_CALIBRATION, recipe="static-int8")


def test_a_calibration_path_that_is_missing(tmp_path: pathlib.Path) -> None:
    refused(
        Code.CALIBRATION_SOURCE, "absent.npz", recipe=STATIC, calibration=tmp_path / "absent.npz"
    )


def test_pickles_in_calibration_files_are_not_executed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "feeds.npz"
    np.savez(path, x=np.array([{"not": "an array"}], dtype=object))
    error = refused_with(recipe=STATIC, calibration=path)
    assert error.code.id.startswith("QC2"), str(error)


def test_a_feed_with_a_wrong_name() -> None:
    feed = {"y": FEEDS[0]["x"]}
    refused(Code.FEED_NAME, "[0].y", "known: x", recipe=STATIC, calibration=[feed])


def test_a_feed_with_a_wrong_shape() -> None:
    feed = {"x": np.zeros((2, WIDTH + 1), np.float32)}
    refused(Code.FEED_SHAPE, str(WIDTH + 1), str(WIDTH), recipe=STATIC, calibration=[feed])


def test_a_feed_with_a_wrong_type() -> None:
    feed = {"x": np.zeros((2, WIDTH), np.int64)}
    refused(Code.FEED_DTYPE, "int64", "float32", recipe=STATIC, calibration=[feed])


def test_a_feed_with_nan() -> None:
    feed = {"x": np.full((2, WIDTH), np.nan, np.float32)}
    refused(Code.NOT_FINITE, recipe=STATIC, calibration=[feed])


@pytest.mark.parametrize(
    ("options", "code", "hint"),
    [
        ({"target": "cpu-vni"}, Code.UNKNOWN_TARGET, "cpu-vnni"),
        ({"recipe": "static-int"}, Code.UNKNOWN_RECIPE, "static-int8"),
        ({"recipe": {"base": "static-int"}}, Code.UNKNOWN_RECIPE, "static-int8"),
        ({"recipe": {"base": "auto", "calibation": {}}}, Code.RECIPE_KEY, "calibration"),
        ({"recipe": {"calibration": {"percentil": 99.9}}}, Code.RECIPE_KEY, "percentile"),
        ({"form": "qqd"}, Code.USAGE, "qdq"),
        ({"target": "tensorrt", "form": "ort"}, Code.TARGET_CANNOT, "qdq"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_word(
    options: dict[str, Any], code: Code, hint: str
) -> None:
    refused(code, hint, **options)


def test_a_rule_that_matches_nothing_names_the_nearest_nodes() -> None:
    recipe = {**STATIC, "rules": [{"match": "matmul_0_nod", "scheme": "float"}]}
    refused(Code.RULE_MATCHES_NOTHING, "matmul_0_node", recipe=recipe, calibration=FEEDS)


def test_a_scheme_that_the_target_does_not_have() -> None:
    refused(Code.TARGET_CANNOT, target="tensorrt", recipe="dynamic-int8")


@pytest.mark.parametrize("text", ["nonsense = [", "name: [unclosed"])
def test_a_recipe_file_that_does_not_parse(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / ("recipe.toml" if "=" in text else "recipe.yaml")
    path.write_text(text)
    refused(Code.RECIPE_KEY, path.name, recipe=path)


def test_yaml_objects_are_not_built(tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{mark}']\n")
    refused(Code.RECIPE_KEY, recipe=path)
    assert not mark.exists()


def test_an_output_that_is_a_file_stays_as_it_was(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "out"
    place.write_text("mine")
    refused(Code.NOT_WRITABLE, "out", recipe="float", output=place)
    assert place.read_text() == "mine"


def test_an_output_folder_with_other_files_stays_as_it_was(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused(Code.NOT_WRITABLE, recipe="float", output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_compile_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    refused(Code.NEEDS_CALIBRATION, recipe="static-int8", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [{}, {"format": 99}, {"format": 1, "nodes": 3}])
def test_a_plan_that_is_none(data: dict[str, Any]) -> None:
    refused(Code.BAD_PLAN, recipe=STATIC, calibration=FEEDS, plan=data)


def test_a_plan_of_another_model() -> None:
    plan = qcompile(tiny.build("convnet"), recipe=STATIC, calibration=tiny.feeds("convnet", 2)).plan
    refused(Code.BAD_PLAN, recipe=STATIC, calibration=FEEDS, plan=plan)


def test_an_operator_that_the_runtime_does_not_know_cannot_be_calibrated() -> None:
    model = _with_node_in_front("Wobble", "my.domain")
    with pytest.raises(QcError) as caught:
        qcompile(model, recipe=STATIC, calibration=FEEDS)
    assert caught.value.code is Code.FLOAT_MODEL_FAILS
    assert "my.domain:Wobble" in str(caught.value)
    assert "leave the data out" in caught.value.diagnostic.hint


def test_an_operator_that_the_runtime_does_not_know_stays_in_float_unverified() -> None:
    artifact = qcompile(
        _with_node_in_front("Wobble", "my.domain"), recipe={"base": "dynamic-int8", "force": True}
    )
    wobble = next(item for item in artifact.plan if item.op == "my.domain:Wobble")
    assert wobble.reason is not None
    assert wobble.reason.code is Code.CUSTOM_OP
    said = next(d for d in artifact.report.diagnostics if d.code is Code.NOT_VERIFIED)
    assert "my.domain:Wobble" in said.message


def test_an_operator_that_the_compiler_does_not_know_stays_in_float_with_a_reason() -> None:
    artifact = qcompile(
        _with_node_in_front("QuickGelu", "com.microsoft"), recipe=STATIC, calibration=FEEDS
    )
    (decision,) = (item for item in artifact.plan if item.node == "in_front")
    assert decision.verdict is Verdict.FLOAT
    assert artifact.plan.count()["quantized"] == 3


def _with_node_in_front(op: str, domain: str) -> ir.Model:
    model = tiny.build("mlp")
    first = model.graph.node(0)
    node = ir.node(op, [model.graph.inputs[0]], domain=domain, name="in_front")
    node.outputs[0].name = "changed"
    model.graph.insert_before(first, node)
    first.replace_input_with(0, node.outputs[0])
    model.opset_imports[domain] = 1
    return model

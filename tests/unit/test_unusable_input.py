"""What users get wrong, beyond the everyday cases of tests/e2e: one coded error each, no debris."""

from __future__ import annotations

import copy
import errno
import json
import pathlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompiler.artifact
from qcompiler import Artifact, Code, Plan, QcError, qcompile

FORCED = {"base": "static-int8", "force": True, "verify": {"guard": False}}
RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((4, 16)).astype(np.float32)} for _ in range(3)]


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def info(name: str, shape: Any, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def build(nodes: Any, inputs: Any, outputs: Any, weights: dict[str, Any]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def mlp(dtype: type = np.float32, **change: np.ndarray) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {"w1": weight(16, 16), "b": weight(16), "w2": weight(16, 16), **change}
    return build(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
            helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
            helper.make_node("Relu", ["c"], ["d"], name="relu"),
            helper.make_node("MatMul", ["d", "w2"], ["y"], name="second"),
        ],
        [info("x", ["n", 16], kind)],
        [info("y", ["n", 16], kind)],
        {name: array.astype(dtype) for name, array in weights.items()},
    )


def refused(code: Code, call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(QcError) as caught:
        call()
    assert caught.value.code is code, caught.value
    for word in words:
        assert word in str(caught.value)


# --- models -------------------------------------------------------------------------------------


def cut_raw_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:100]


def make_sequence(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))


def call_itself(model: onnx.ModelProto) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    again = helper.make_node("Again", ["a"], ["b"], domain="mine")
    model.functions.append(helper.make_function("mine", "Again", ["a"], ["b"], [again], imports))
    model.opset_import.append(imports[1])


DAMAGE: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "short tensor": (cut_raw_data, "'w1'"),
    "no output": (lambda m: m.graph.ClearField("output"), "no output"),
    "sequence input": (make_sequence, "'s'"),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "d"), "cycle"),
    "input of nobody": (lambda m: m.graph.node[0].input.__setitem__(0, "q"), "%q"),
    "output of nobody": (lambda m: m.graph.output[0].__setattr__("name", "q"), "'q'"),
    "value made twice": (lambda m: m.graph.node[1].output.__setitem__(0, "a"), "'a'"),
    "function that calls itself": (call_itself, "Again"),
    "typo of an operator": (lambda m: m.graph.node[2].__setattr__("op_type", "Rellu"), "'Relu'"),
    "domain not imported": (lambda m: m.graph.node[2].__setattr__("domain", "mine"), "'mine'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_graph_is_refused_at_the_door(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlp()
    damage, word = DAMAGE[name]
    damage(model)
    refused(Code.INVALID_GRAPH, lambda: qcompile(model), word)
    assert not caplog.records, "a library's log is no message to a user"


def behind(ops: list[str], given: str, result: str, **attributes: Any) -> list[onnx.NodeProto]:
    names = [given, *(f"{result}{index}" for index in range(len(ops) - 1)), result]
    pairs = zip(ops, names, names[1:], strict=False)
    return [helper.make_node(op, [a], [b], **attributes) for op, a, b in pairs]


def test_long_chains_are_no_matter_of_recursion() -> None:
    nodes = [
        *behind(["Transpose"] * 1500, "w1", "t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["a"], name="first"),
        *behind(["Relu"] * 1500, "a", "b"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    weights = {"w1": weight(16, 16), "w2": weight(16, 16)}
    model = build(nodes, [info("x", ["n", 16])], [info("y", ["n", 16])], weights)
    artifact = qcompile(model, recipe="w4-awq", calibration=FEEDS)
    assert artifact.plan.nodes["second"].verdict == "quantized"


def test_an_input_without_rank_is_named_where_no_data_tell_it() -> None:
    model = mlp()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    name = model.graph.input[0].name
    refused(Code.FLOAT_MODEL_FAILS, lambda: qcompile(model), name, "rank", "calibration data")
    assert qcompile(model, recipe=FORCED, calibration=FEEDS).plan.count()["quantized"]


@pytest.mark.parametrize("suffix", [".json", ".textproto", ".onnxtxt", ".onnx", ""])
def test_garbage_under_any_suffix_is_not_onnx(tmp_path: pathlib.Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("{ garbage")
    refused(Code.NOT_ONNX, lambda: qcompile(path))


def test_an_opset_out_of_reach_names_the_limits() -> None:
    model = mlp()
    model.opset_import[0].version = 999
    refused(Code.UNKNOWN_OPSET, lambda: qcompile(model), "999")


@pytest.mark.parametrize("opset", range(11, 27))
def test_every_opset_from_11_on_compiles(opset: int) -> None:
    model = mlp()
    model.opset_import[0].version = opset
    artifact = qcompile(model, recipe=FORCED, calibration=FEEDS)
    assert artifact.plan.count()["quantized"] == 2
    assert artifact.report.fidelity[0]["cosine"] > 0.99


def test_a_folder_as_external_data_is_told(tmp_path: pathlib.Path) -> None:
    model = mlp()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="sub")
    (tmp_path / "sub").mkdir()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(Code.EXTERNAL_DATA, lambda: qcompile(tmp_path / "m.onnx"), "is no file")


@pytest.mark.parametrize("name", ["w1", "b"])
def test_nan_in_a_constant_is_refused_by_name(name: str) -> None:
    array = weight(16, 16) if name == "w1" else weight(16)
    array.flat[3] = np.nan
    refused(Code.NOT_FINITE_WEIGHT, lambda: qcompile(mlp(**{name: array})), repr(name), "1 NaN")


@pytest.mark.parametrize("form", ["ort", "qdq"])
def test_infinity_that_is_added_is_a_mask_and_allowed(form: str) -> None:
    mask = np.zeros(16, np.float32)
    mask[3] = -np.inf
    artifact = qcompile(mlp(b=mask), recipe=FORCED, calibration=FEEDS, form=form)
    assert artifact.report.fidelity[0]["cosine"] > 0.99


def test_nan_in_activations_is_told_with_node_and_feed() -> None:
    model = build(
        [
            helper.make_node("Log", ["x"], ["l"], name="log"),
            helper.make_node("MatMul", ["l", "w"], ["y"], name="mm"),
        ],
        [info("x", ["n", 16])],
        [info("y", None)],
        {"w": weight(16, 16)},
    )
    refused(
        Code.NOT_FINITE, lambda: qcompile(model, recipe=FORCED, calibration=FEEDS), "log", "feed 0"
    )


@pytest.mark.parametrize("recipe", [FORCED, "auto", {"base": "dynamic-int8", "force": True}])
@pytest.mark.parametrize("shape", [(0, 16), (16, 0)])
def test_a_weight_without_elements_stays_in_float(recipe: Any, shape: tuple[int, int]) -> None:
    model = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
        [info("x", ["n", shape[0]])],
        [info("y", None)],
        {"w": weight(16, 16)[: shape[0], : shape[1]]},
    )
    feeds = [{"x": np.zeros((2, shape[0]), np.float32)}]
    artifact = qcompile(model, recipe=recipe, calibration=feeds)
    assert artifact.plan.count() == {"float": 1}


@pytest.mark.parametrize("recipe", ["weight-int8", "weight-int4"])
@pytest.mark.parametrize("form", ["ort", "qdq"])
def test_float64_weights_stay_in_float_where_the_kernel_takes_float32(
    recipe: str, form: str
) -> None:
    artifact = qcompile(mlp(np.float64), recipe=recipe, form=form)
    (first, *_) = artifact.plan
    assert first.verdict == "float"
    assert first.reason is not None
    assert artifact.report.fidelity[0]["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize("recipe", [FORCED, "auto", {"base": "dynamic-int8", "force": True}])
def test_a_value_read_by_conv_and_matmul_compiles(recipe: Any) -> None:
    """Their sensitivities run along different axes: channels of one, columns of the other."""
    model = build(
        [
            helper.make_node("Relu", ["x"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "k"], ["c"], name="conv", pads=[1] * 4),
            helper.make_node("MatMul", ["r", "w"], ["m"], name="mm"),
        ],
        [info("x", ["n", 6, 10, 16])],
        [info("c", None), info("m", None)],
        {"k": weight(8, 6, 3, 3), "w": weight(16, 24)},
    )
    feeds = [{"x": RNG.standard_normal((2, 6, 10, 16)).astype(np.float32)} for _ in range(2)]
    artifact = qcompile(model, recipe=recipe, calibration=feeds)
    assert min(item["cosine"] for item in artifact.report.fidelity) > 0.99


@pytest.mark.parametrize("name", ["model.pt2", "folder"])
def test_what_needs_torch_says_so_where_there_is_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "config.json").write_text("{}")
    else:
        path.write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(Code.UNSUPPORTED_INPUT, lambda: qcompile(path), "torch", "qcompiler-onnx[torch]")


# --- calibration --------------------------------------------------------------------------------


def raising() -> Iterator[dict[str, np.ndarray]]:
    yield FEEDS[0]
    raise KeyError("no such picture")


SOURCES: dict[str, tuple[Any, Code, str]] = {
    "callable without result": (lambda: None, Code.CALIBRATION_SOURCE, "iterated"),
    "source that raises": (raising, Code.CALIBRATION_SOURCE, "calibration[1]"),
    "number": (5, Code.CALIBRATION_SOURCE, "int"),
    "objects": ([{"x": np.full((4, 16), None)}], Code.FEED_DTYPE, "calibration[0].x"),
    "ragged lists": ([{"x": [[1.0, 2.0], [3.0]]}], Code.FEED_SHAPE, "calibration[0].x"),
    "nothing in a feed": ([{}], Code.FEED_NAME, "nothing"),
    "late infinity": ([*FEEDS, {"x": np.full((4, 16), np.inf, np.float32)}], Code.NOT_FINITE, "3"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_source_is_told_with_its_place(name: str) -> None:
    source, code, word = SOURCES[name]
    refused(code, lambda: qcompile(mlp(), recipe=FORCED, calibration=source), word)


def test_inputs_of_text_can_be_calibrated_around() -> None:
    model = build(
        [
            helper.make_node("StringNormalizer", ["s"], ["t"], name="lower"),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"),
        ],
        [info("s", ["n"], TensorProto.STRING), info("x", ["n", 16])],
        [info("t", None, TensorProto.STRING), info("y", None)],
        {"w": weight(16, 16)},
    )
    feeds = [{"s": np.array(["a", "b"], object), "x": FEEDS[0]["x"][:2]}]
    artifact = qcompile(model, recipe=FORCED, calibration=feeds)
    assert artifact.plan.nodes["mm"].verdict == "quantized"


# --- arguments ----------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[dict[str, Any], Code, str]] = {
    "target of a wrong type": ({"target": 5}, Code.UNKNOWN_TARGET, "int"),
    "recipe of a wrong type": ({"recipe": 5}, Code.RECIPE_KEY, "int"),
    "plan of a wrong type": ({"plan": [1]}, Code.BAD_PLAN, "list"),
    "no threads": ({"threads": 0}, Code.USAGE, "threads"),
    "threads in words": ({"threads": "two"}, Code.USAGE, "'two'"),
    "yes to threads": ({"threads": True}, Code.USAGE, "True"),
    "progress that cannot be called": ({"progress": 5}, Code.USAGE, "callable"),
    "dump of a wrong type": ({"dump": 5}, Code.USAGE, "dump"),
    "dump with a zero byte": ({"dump": "a\0b"}, Code.USAGE, "dump"),
    "work of a wrong type": ({"work": b"x"}, Code.USAGE, "work"),
    "plan with a long name": ({"plan": "x" * 5000}, Code.BAD_PLAN, "long"),
    "output of a wrong type": ({"output": 5}, Code.NOT_WRITABLE, "int"),
    "output with a zero byte": ({"output": "a\0b"}, Code.NOT_WRITABLE, "null"),
    "output with a long name": ({"output": "x" * 300}, Code.NOT_WRITABLE, "long"),
    "base of a wrong type": ({"recipe": {"base": ["a"]}}, Code.UNKNOWN_RECIPE, "['a']"),
    "bits nobody has": ({"recipe": {"rules": [{"bits": 9}]}}, Code.RECIPE_KEY, "8"),
    "no group": ({"recipe": {"rules": [{"group_size": 0}]}}, Code.RECIPE_KEY, "at least 1"),
    "kernel of another operator": (
        {"recipe": {"rules": [{"match": "first", "kernel": "conv-static"}]}, "calibration": FEEDS},
        Code.TARGET_CANNOT,
        "computes Conv, this is a MatMul",
    ),
    "form that the target lacks": (
        {"target": "tensorrt", "form": "ort"},
        Code.TARGET_CANNOT,
        "qdq",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_unusable_argument_is_told(name: str) -> None:
    arguments, code, word = ARGUMENTS[name]
    refused(code, lambda: qcompile(mlp(), **arguments), word)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xfe\x00", Code.RECIPE_KEY),
        (b"", Code.RECIPE_KEY),
        (b"a: [", Code.RECIPE_KEY),
        (b"!!python/object/apply:os.getcwd []", Code.RECIPE_KEY),
    ],
)
def test_a_recipe_file_of_garbage_is_told_in_one_line(
    tmp_path: pathlib.Path, content: bytes, code: Code
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(QcError) as caught:
        qcompile(mlp(), recipe=path)
    assert caught.value.code is code
    assert "\n" not in str(caught.value)


def test_a_dump_folder_that_is_a_file_is_told(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    refused(Code.NOT_WRITABLE, lambda: qcompile(mlp(), dump=path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "feed",
    [{"z": FEEDS[0]["x"]}, {"x": FEEDS[0]["x"][:, :3]}, {"x": FEEDS[0]["x"].astype(int)}, 5],
)
def test_an_artifact_tells_what_is_wrong_with_a_feed(artifact: Artifact, feed: Any) -> None:
    with pytest.raises(QcError) as caught:
        artifact.run(feed)
    assert caught.value.code in (Code.FEED_NAME, Code.FEED_SHAPE, Code.FEED_DTYPE)


# --- artifacts on disk --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return qcompile(mlp(), recipe=FORCED, calibration=FEEDS)


MISTAKES: dict[str, tuple[Callable[[Artifact], Any], Code]] = {
    "load of a number": (lambda _: Artifact.load(5), Code.NOT_ARTIFACT),  # type: ignore[arg-type]
    "plan from a number": (lambda _: Plan.load(5), Code.BAD_PLAN),  # type: ignore[arg-type]
    "a node by number": (lambda item: item.plan.keep_float(5), Code.BAD_PLAN),  # type: ignore[arg-type]
    "threads in words": (lambda item: item.session(threads="two"), Code.USAGE),  # type: ignore[arg-type]
    "no threads": (lambda item: item.session(threads=0), Code.USAGE),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_with_an_artifact_are_told(artifact: Artifact, name: str) -> None:
    mistake, code = MISTAKES[name]
    refused(code, lambda: mistake(artifact))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_an_artifact_that_ran_can_be_copied(artifact: Artifact, copied: Any) -> None:
    before = artifact.run(FEEDS[0])
    after = copied(artifact).run(FEEDS[0])
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_artifact_is_shown_in_a_line(artifact: Artifact) -> None:
    assert "quantized" in repr(artifact)
    assert len(repr(artifact)) < 200


def test_an_empty_folder_is_filled_where_it_is(artifact: Artifact, tmp_path: pathlib.Path) -> None:
    """It may be a mount point or a working directory, which cannot be renamed."""
    inode = tmp_path.stat().st_ino
    artifact.save(tmp_path)
    assert tmp_path.stat().st_ino == inode
    assert Artifact.load(tmp_path).plan == artifact.plan


def test_a_link_to_a_folder_stays_a_link(artifact: Artifact, tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        artifact.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("exists", ["nothing", "empty", "artifact"])
def test_a_full_disk_leaves_what_was_there(
    artifact: Artifact, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, exists: str
) -> None:
    place = tmp_path / "out"
    if exists != "nothing":
        place.mkdir()
    if exists == "artifact":
        artifact.save(place)
    before = sorted(tmp_path.rglob("*"))

    def full(path: pathlib.Path, data: Any) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(qcompiler.artifact, "_write_json", full)
    refused(Code.NOT_WRITABLE, lambda: artifact.save(place), "No space left")
    assert sorted(tmp_path.rglob("*")) == before
    if exists == "artifact":
        Artifact.load(place)


SPOILED: dict[str, Callable[[pathlib.Path], Any]] = {
    "no report": lambda root: (root / "report.json").unlink(),
    "empty report": lambda root: (root / "report.json").write_text("{}"),
    "report that is a list": lambda root: (root / "report.json").write_text("[]"),
    "changed plan": lambda root: (root / "plan.json").write_text("{}"),
    "no model": lambda root: (root / "model.onnx").unlink(),
    "short manifest": lambda root: (root / "manifest.json").write_text('{"format": 1}'),
    "manifest of lists": lambda root: (root / "manifest.json").write_text(
        '{"format": 1, "files": ["a"], "session": {}}'
    ),
    "manifest without a level": lambda root: (root / "manifest.json").write_text(
        '{"format": 1, "files": {}, "session": {}}'
    ),
    "manifest that climbs": lambda root: (root / "manifest.json").write_text(
        '{"format": 1, "files": {"../x": ""}, "session": {}}'
    ),
    "cut manifest": lambda root: (root / "manifest.json").write_text("{"),
    "newer format": lambda root: (root / "manifest.json").write_text('{"format": 99}'),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_artifact_is_told(artifact: Artifact, tmp_path: pathlib.Path, name: str) -> None:
    root = tmp_path / "out"
    artifact.save(root)
    SPOILED[name](root)
    refused(Code.NOT_ARTIFACT, lambda: Artifact.load(root))


def test_a_plan_file_that_is_no_table_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plan.json").write_text("[1]")
    refused(Code.BAD_PLAN, lambda: qcompile(mlp(), plan=tmp_path))


# --- plans edited by hand -----------------------------------------------------------------------


def test_a_node_is_put_in_float_by_its_verdict_alone(
    artifact: Artifact, tmp_path: pathlib.Path
) -> None:
    data = json.loads(json.dumps(artifact.plan.to_dict()))
    for item in data["nodes"]:
        if item["node"] in ("first", "bias"):
            kept = {key: item[key] for key in ("node", "op", "origin")}
            item.clear()
            item.update(kept, verdict="float")
    again = qcompile(mlp(), recipe=FORCED, calibration=FEEDS, plan=data)
    first = again.plan.nodes["first"]
    assert first.verdict == "float"
    assert first.reason is not None
    assert first.reason.code is Code.KEPT_BY_RULE
    assert again.plan.nodes["second"].verdict == "quantized"


@pytest.mark.parametrize(
    ("key", "entry", "word"),
    [
        ("inputs", None, "input 0 has no spec"),
        ("inputs", [None, "s8c@1"], "input 0 has no spec"),
        ("algorithm", "gtpq", "'gptq'"),
        ("algorithm", ["gptq"], "wanted a text"),
        ("kernel", 5, "wanted a text"),
    ],
)
def test_a_slip_in_an_edited_plan_is_told(
    artifact: Artifact, key: str, entry: Any, word: str
) -> None:
    data = json.loads(json.dumps(artifact.plan.to_dict()))
    (item,) = (item for item in data["nodes"] if item["node"] == "second")
    item[key] = entry
    if entry is None:
        del item[key]
    refused(
        Code.BAD_PLAN,
        lambda: qcompile(mlp(), recipe=FORCED, calibration=FEEDS, plan=data),
        "second",
        word,
    )


def test_keep_float_takes_along_what_the_node_absorbed(artifact: Artifact) -> None:
    plan = artifact.plan.keep_float("first", reason="too coarse")
    assert [item.verdict for item in plan][:2] == ["float", "float"]
    again = qcompile(mlp(), recipe=FORCED, calibration=FEEDS, plan=plan)
    assert again.plan.nodes["first"].reason is not None
    assert again.plan.nodes["first"].reason.message == "too coarse"
    refused(Code.BAD_PLAN, lambda: artifact.plan.keep_float("frist"), "'first'")


def test_a_given_plan_is_not_dropped_for_being_slow(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.verify.check.Checked.slower_than", lambda *_: True)
    plan = Plan.from_dict(artifact.plan.to_dict())
    again = qcompile(mlp(), recipe="static-int8", calibration=FEEDS, plan=plan)
    assert again.plan.count() == plan.count()


def test_a_plan_for_another_target_says_which(artifact: Artifact) -> None:
    refused(
        Code.BAD_PLAN,
        lambda: qcompile(mlp(), "cpu-arm64", FORCED, FEEDS, plan=artifact.plan),
        repr(artifact.plan.target),
        "'cpu-arm64'",
    )


@pytest.mark.parametrize("target", ["cpu-amx", "cpu-arm64", "tensorrt", "openvino", "qnn-htp"])
def test_an_artifact_for_another_machine_is_written_and_said_to_be_unverified(
    target: str, tmp_path: pathlib.Path
) -> None:
    artifact = qcompile(mlp(), target, FORCED, FEEDS, output=tmp_path / "out")
    assert artifact.plan.count()["quantized"] == 2
    from qcompiler.targets.registry import host_flags, load_target

    if not (set(load_target(target).isa) <= host_flags() and target.startswith("cpu")):
        assert Code.NOT_VERIFIED in {item.code for item in artifact.report.diagnostics}
    shutil.rmtree(tmp_path / "out")


def test_an_empty_batch_in_front_decides_nothing() -> None:
    name = mlp().graph.input[0].name
    empty = {name: np.asarray(FEEDS[0][name])[:0]}
    artifact = qcompile(mlp(), recipe=FORCED, calibration=[empty, *FEEDS])
    assert artifact.plan.count() == qcompile(mlp(), recipe=FORCED, calibration=FEEDS).plan.count()

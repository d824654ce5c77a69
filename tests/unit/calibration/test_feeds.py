"""Calibration data in every form a user may have it in."""

import pathlib
from collections import UserDict

import numpy as np
import pytest

from qcompiler.calibration.feeds import open_feeds
from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime.inputs import InputSpec

X = InputSpec("x", np.dtype(np.float32), ("batch", 4))
IDS = InputSpec("ids", np.dtype(np.int64), ("batch", "sequence"))
ROW = np.ones((2, 4), np.float32)


def shapes(feeds: object) -> list[tuple[int, ...]]:
    return [feed["x"].shape for feed in feeds]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "calibration",
    [
        [{"x": ROW}, {"x": ROW[:1]}],
        [(ROW,), (ROW[:1],)],
        [ROW, ROW[:1]],
        lambda: [ROW, ROW[:1]],
        lambda: ({"x": x} for x in (ROW, ROW[:1])),
        [UserDict(x=ROW), UserDict(x=ROW[:1])],  # what transformers' BatchEncoding is
        [(ROW, np.array([3])), (ROW[:1], np.array([4]))],  # a label behind the input
        [({"x": ROW}, 3), ({"x": ROW[:1]}, 4)],
    ],
)
def test_every_form_of_source_gives_the_same_feeds_again_and_again(calibration: object) -> None:
    feeds = open_feeds(calibration, [X])
    assert feeds.reiterable
    assert feeds.first["x"].shape == (2, 4)
    assert shapes(feeds) == shapes(feeds) == [(2, 4), (1, 4)]


def test_one_dict_or_array_is_one_feed() -> None:
    assert shapes(open_feeds({"x": ROW}, [X])) == [(2, 4)]
    assert shapes(open_feeds(ROW, [X])) == [(2, 4)]


def test_a_generator_is_read_once_and_its_first_feed_is_replayed() -> None:
    taken = []

    def data():  # type: ignore[no-untyped-def]
        for index in range(3):
            taken.append(index)
            yield {"x": np.full((1, 4), index, np.float32)}

    feeds = open_feeds(data(), [X])
    assert not feeds.reiterable
    assert feeds.first is feeds.first
    assert taken == [0]
    assert [feed["x"][0, 0] for feed in feeds] == [0, 1, 2]
    assert taken == [0, 1, 2]
    with pytest.raises(QcError, match="read already") as error:
        list(feeds)
    assert error.value.code is Code.CALIBRATION_SOURCE


def test_a_stream_is_not_read_ahead() -> None:
    taken = []

    def data():  # type: ignore[no-untyped-def]
        for index in range(100):
            taken.append(index)
            yield ROW

    feeds = iter(open_feeds(data, [X]))
    next(feeds)
    next(feeds)
    assert taken == [0, 1]


def test_max_samples_ends_a_pass() -> None:
    feeds = open_feeds([ROW] * 9, [X], max_samples=4)
    assert feeds.count_hint == 4
    assert len(list(feeds)) == 4
    endless = open_feeds((ROW for _ in iter(int, 1)), [X], max_samples=2)
    assert endless.first["x"].shape == (2, 4)
    assert len(list(endless)) == 2


def test_torch_loaders_and_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.ones(5, 4), torch.zeros(5, dtype=torch.int64))
    feeds = open_feeds(torch.utils.data.DataLoader(data, batch_size=2), [X])
    assert feeds.count_hint == 3
    assert shapes(feeds) == [(2, 4), (2, 4), (1, 4)]
    half = open_feeds([torch.ones(1, 4, dtype=torch.bfloat16, requires_grad=True)], [X])
    assert half.first["x"].dtype == np.float32


def test_a_tensor_is_one_feed_as_an_array_is() -> None:
    torch = pytest.importorskip("torch")
    assert shapes(open_feeds(torch.from_numpy(ROW), [X])) == [(2, 4)]


def test_safe_casts_are_made_and_others_refused() -> None:
    assert open_feeds([ROW.astype(np.float64)], [X]).first["x"].dtype == np.float32
    assert open_feeds([ROW.tolist()], [IDS, X][1:]).first["x"].dtype == np.float32
    narrow = np.ones((1, 3), np.int32)
    assert open_feeds([narrow], [IDS]).first["ids"].dtype == np.int64
    with pytest.raises(QcError) as error:
        _ = open_feeds([np.ones((1, 3), np.float32)], [IDS]).first
    assert error.value.code is Code.FEED_DTYPE
    assert "float32" in str(error.value)
    assert "int64" in str(error.value)


@pytest.mark.parametrize(
    ("item", "specs", "code", "words"),
    [
        ({"y": ROW}, [X], Code.FEED_NAME, "no such input"),
        ({}, [X], Code.FEED_NAME, "lacks"),
        (ROW, [X, IDS], Code.FEED_NAME, "2 inputs"),
        ((ROW,), [X, IDS], Code.FEED_NAME, "1 items for 2 inputs"),
        ({"x": np.ones((2, 5), np.float32)}, [X], Code.FEED_SHAPE, "axis 1 must be 4"),
        ({"x": np.ones(4, np.float32)}, [X], Code.FEED_SHAPE, "rank 1"),
        ({"x": "text"}, [X], Code.FEED_DTYPE, "float32"),
        ({"x": {1: 2}}, [X], Code.FEED_DTYPE, "objects"),
        ({"x": [[1.0, 2.0], [1.0]]}, [X], Code.FEED_SHAPE, "rectangular"),
    ],
)
def test_a_feed_that_does_not_suit_the_model_is_told_with_its_place(
    item: object, specs: list[InputSpec], code: Code, words: str
) -> None:
    good = {spec.name: np.ones((2, 4), spec.dtype) for spec in specs}
    with pytest.raises(QcError, match=words) as error:
        list(open_feeds([good, item], specs))
    assert error.value.code is code
    assert "calibration[1]" in error.value.diagnostic.where
    assert error.value.diagnostic.values["index"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_told_with_input_and_index(bad: float) -> None:
    broken = ROW.copy()
    broken[1, 2] = bad
    with pytest.raises(QcError, match=r"feed 1 holds .* at \[1, 2\]") as error:
        list(open_feeds([ROW, broken], [X]))
    assert error.value.code is Code.NOT_FINITE
    assert error.value.diagnostic.values == {"index": 1, "input": "x"}


def test_empty_sources_are_refused() -> None:
    for empty in ([], (), list, iter(())):
        with pytest.raises(QcError) as error:
            list(open_feeds(empty, [X]))
        assert error.value.code is Code.EMPTY_CALIBRATION
    with pytest.raises(QcError) as error:
        _ = open_feeds(lambda: (), [X]).first
    assert error.value.code is Code.EMPTY_CALIBRATION


def test_what_is_no_source_is_refused() -> None:
    for source in (3, object(), lambda: 3):
        with pytest.raises(QcError) as error:
            list(open_feeds(source, [X]))
        assert error.value.code is Code.CALIBRATION_SOURCE


def test_npz_holds_one_feed_or_many_by_a_leading_axis(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((3, 2, 4), np.float32))
    feeds = open_feeds(str(path), [X])
    assert feeds.count_hint == 3
    assert shapes(feeds) == shapes(feeds) == [(2, 4)] * 3
    np.savez(path, x=np.ones((19, 4), np.float32))
    assert shapes(open_feeds(path, [X])) == [(8, 4), (8, 4), (3, 4)]
    fixed = InputSpec("x", np.dtype(np.float32), (1, 4))
    assert shapes(open_feeds(path, [fixed])) == [(1, 4)] * 19


def test_npy_and_folders_are_read(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 4), np.float32))
    assert shapes(open_feeds(tmp_path / "x.npy", [X])) == [(8, 4), (1, 4)]
    assert shapes(open_feeds(tmp_path, [X])) == [(8, 4), (1, 4)]
    with pytest.raises(QcError, match="one array for 2 inputs"):
        list(open_feeds(tmp_path, [X, IDS]))
    for index in (1, 0):
        np.savez(tmp_path / f"{index}.npz", x=np.full((index + 1, 4), index, np.float32))
    assert shapes(open_feeds(tmp_path, [X])) == [(1, 4), (2, 4), (8, 4), (1, 4)]


def test_unreadable_paths_are_refused_and_no_pickle_is_run(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "data.txt").write_text("1 2 3")
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "two.npy", ROW)
    for name in ("missing.npz", "empty", "bad.npz", "data.txt", "pickled.npz"):
        with pytest.raises(QcError) as error:
            list(open_feeds(tmp_path / name, [X]))
        assert error.value.code is Code.CALIBRATION_SOURCE, name
        assert name in error.value.diagnostic.where
    with pytest.raises(QcError, match="one array for 2 inputs"):
        open_feeds(tmp_path / "two.npy", [X, IDS])


def test_wrong_names_in_a_file_are_told(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "data.npz", y=ROW)
    with pytest.raises(QcError) as error:
        list(open_feeds(tmp_path / "data.npz", [X]))
    assert error.value.code is Code.FEED_NAME


@pytest.mark.parametrize("reiterable", [True, False])
def test_the_digest_tells_data_apart(reiterable: bool) -> None:
    def digest(arrays: list[np.ndarray], limit: int | None = None) -> str | None:
        data = [{"x": a} for a in arrays]
        feeds = open_feeds(data if reiterable else iter(data), [X], limit)
        assert feeds.digest is None
        assert feeds.first is not None
        list(feeds)
        return feeds.digest

    a, b = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert digest([a, b]) == digest([a, b]) == digest([a, b, a], limit=2)
    assert len({digest([a]), digest([b]), digest([a, b]), digest([b, a])}) == 4


def test_types_that_numpy_does_not_know_have_a_digest_too() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    spec = InputSpec("x", np.dtype(ml_dtypes.bfloat16), ("batch", 4))
    ones, twos = (
        open_feeds([x.astype(ml_dtypes.bfloat16)], [spec]) for x in (ROW, np.float32(2) * ROW)
    )
    assert shapes(ones) == shapes(twos) == [(2, 4)]
    assert ones.digest != twos.digest


def test_a_scalar_beside_a_batch_is_read_from_a_file(tmp_path: pathlib.Path) -> None:
    scalar = InputSpec("s", np.dtype(np.float32), ())
    np.savez(tmp_path / "one.npz", x=ROW, s=np.float32(3))
    (one,) = open_feeds(tmp_path / "one.npz", [X, scalar])
    assert (one["x"].shape, one["s"].shape) == ((2, 4), ())
    np.savez(tmp_path / "many.npz", x=np.stack([ROW, ROW, ROW]), s=np.arange(3, dtype=np.float32))
    assert [float(feed["s"]) for feed in open_feeds(tmp_path / "many.npz", [X, scalar])] == [
        0,
        1,
        2,
    ]

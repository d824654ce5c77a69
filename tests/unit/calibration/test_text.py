"""Calibration text in every form it comes in."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from qcompiler.calibration.feeds import open_feeds
from qcompiler.calibration.text import TextModel, feed_of, open_text
from qcompiler.calibration.text_source import is_text, look_at
from qcompiler.diagnostics import Code, QcError
from qcompiler.recipe import TextOptions
from qcompiler.runtime.inputs import InputSpec

INT, FLOAT = np.dtype(np.int64), np.dtype(np.float32)
DECODER = (
    InputSpec("input_ids", INT, ("batch", "sequence")),
    InputSpec("attention_mask", INT, ("batch", "total")),
    InputSpec("past_key_values.0.key", FLOAT, ("batch", 3, "past", 64)),
)
ENCODER = (
    InputSpec("input_ids", INT, ("batch", "sequence")),
    InputSpec("token_type_ids", INT, ("batch", "sequence")),
)


def encode(text: str) -> Sequence[int]:
    return [ord(letter) for letter in text]


def model(specs: tuple[InputSpec, ...] = DECODER, longest: int | None = 100) -> TextModel:
    return TextModel(specs, encode, longest)


def rows(source: Any, options: TextOptions, reader: TextModel | None = None) -> list[list[int]]:
    feeds, _ = open_text(source, reader or model(), options)
    return [feed["input_ids"][0].tolist() for feed in feeds]


FOUR = TextOptions(samples=100, length=4)


def test_texts_of_a_decoder_are_put_together_and_cut(tmp_path: pathlib.Path) -> None:
    wanted = [encode("abcd"), encode("efgh")]
    texts = ["abc", "defghi"]
    assert rows(texts, FOUR) == wanted
    (tmp_path / "a.txt").write_text("abcdefghi")
    (tmp_path / "a.json").write_text(json.dumps(texts))
    (tmp_path / "b.json").write_text(json.dumps([{"text": text} for text in texts]))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n\n" for t in texts))
    for path in sorted(tmp_path.iterdir()):
        assert is_text(path, DECODER)
        assert rows(path, FOUR) == wanted, path
    assert rows([{"content": text} for text in texts], FOUR) == wanted


def test_texts_of_an_encoder_stay_apart() -> None:
    found = rows(["abc", "defghi"], FOUR, model(ENCODER))
    assert found == [encode("abc"), encode("defg")]


def test_tokens_come_as_arrays_or_with_a_mask() -> None:
    tokens = np.arange(12).reshape(3, 4)
    assert is_text(tokens, DECODER)
    assert rows(tokens, FOUR) == tokens.tolist()
    assert is_text([tokens], DECODER)
    assert rows([tokens[:2], tokens[2]], FOUR) == tokens.tolist()
    items = [{"input_ids": tokens[:2], "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]]}]
    assert is_text(items, DECODER)
    assert rows(items, TextOptions(samples=9, length=2)) == [[4, 5], [0, 1], [2, 3]]


@pytest.mark.parametrize(
    "given",
    [
        np.arange(12).reshape(3, 4).tolist(),
        [*np.arange(12, dtype=np.uint16).reshape(3, 4)],
        [list(range(7)), list(range(7, 12))],  # of different lengths
        [[[0, 1, 2, 3]], [[4, 5, 6, 7], [8, 9, 10, 11]]],
    ],
)
def test_tokens_come_as_lists_and_from_generators(given: Any) -> None:
    specs = list(DECODER)
    for source in (given, iter(given), lambda: iter(given)):
        whole, seen = look_at(source)
        assert is_text(seen, specs)
        assert rows(whole, FOUR) == np.arange(12).reshape(3, 4).tolist()


def test_strings_come_from_generators_and_from_functions() -> None:
    texts = ["abc", "defghi"]
    for source in (iter(texts), lambda: iter(texts)):
        whole, seen = look_at(source)
        assert is_text(seen, DECODER)
        assert rows(whole, FOUR) == [encode("abcd"), encode("efgh")]


def test_what_a_generator_of_feeds_gives_first_is_not_lost() -> None:
    feeds = [{"x": np.full((1, 3), i, np.float32)} for i in range(3)]
    whole, seen = look_at(iter(feeds))
    assert not is_text(seen, DECODER)
    specs = [InputSpec("x", FLOAT, ("batch", 3))]
    assert [int(feed["x"][0, 0]) for feed in open_feeds(whole, specs)] == [0, 1, 2]


def test_a_generator_that_raises_is_told_with_its_place() -> None:
    def broken() -> Iterator[str]:
        yield "abcdefgh"
        raise RuntimeError("no more")

    whole, _ = look_at(broken())
    with pytest.raises(QcError, match="RuntimeError: no more") as caught:
        rows(whole, FOUR)
    assert caught.value.code is Code.CALIBRATION_SOURCE
    assert "[1]" in caught.value.diagnostic.where


def test_tokens_come_as_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tokens.npy"
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    for array in (tokens, tokens.reshape(-1)):
        np.save(path, array)
        assert is_text(path, DECODER)
        assert rows(path, FOUR) == tokens.tolist()
    assert not is_text(path, DECODER[:1])  # one input: the array is its feeds
    for array in (tokens.astype(np.float32), tokens.reshape(3, 2, 2), np.asarray(["abcd"])):
        np.save(path, array)
        with pytest.raises(QcError, match="found ") as caught:
            rows(path, FOUR)
        assert caught.value.code is Code.CALIBRATION_SOURCE
        assert "[n, length]" in caught.value.diagnostic.hint
    path.write_bytes(b"nothing")
    with pytest.raises(QcError, match=r"tokens\.npy"):
        rows(path, FOUR)


@pytest.mark.parametrize("source", [[list(range(200))], ["a" * 200]])
def test_tokens_and_texts_that_are_too_long_are_cut(source: Any) -> None:
    assert len(rows(source, FOUR)) == 50
    feeds, said = open_text(source, model(ENCODER), TextOptions(samples=1, length=4))
    assert [feed["input_ids"].shape for feed in feeds] == [(1, 4)]
    assert [item.code for item in said] == [Code.TEXT_CUT]
    assert said[0].values == {"cut": 1, "texts": 1, "tokens": 196}


def test_the_seed_chooses_and_no_more_are_taken_than_asked_for() -> None:
    text = ["".join(chr(65 + i % 50) for i in range(400))]
    few = TextOptions(samples=5, length=4, seed=1)
    assert rows(text, few) == rows(text, few)
    assert len(rows(text, few)) == 5
    assert rows(text, few) != rows(text, TextOptions(samples=5, length=4, seed=2))


def test_fewer_than_asked_for_are_told() -> None:
    _, said = open_text(["abcdefgh"], model(), FOUR)
    assert [item.code for item in said] == [Code.FEW_SAMPLES]
    assert said[0].values == {"samples": 2, "asked": 100}
    assert not open_text(["abcdefgh"], model(), TextOptions(samples=2, length=4))[1]


def test_a_feed_has_every_input_and_an_empty_past() -> None:
    feed = feed_of(np.arange(6).reshape(2, 3), DECODER)
    assert feed["past_key_values.0.key"].shape == (2, 3, 0, 64)
    np.testing.assert_array_equal(feed["attention_mask"], np.ones((2, 3)))
    with pytest.raises(QcError) as found:
        feed_of(np.ones((1, 3), int), (*DECODER, InputSpec("pixels", FLOAT, ("batch", 3))))
    assert found.value.code is Code.FEED_NAME


@pytest.mark.parametrize(
    ("source", "reader", "options", "code"),
    [
        (["abcd"], TextModel(DECODER, None), FOUR, Code.NO_TOKENIZER),
        (["abcd"], model(longest=3), FOUR, Code.USAGE),
        (["abc"], model(), FOUR, Code.EMPTY_CALIBRATION),
        ([{"text": "abcd"}, {"label": 3}], model(), FOUR, Code.CALIBRATION_SOURCE),
        ("nowhere.txt", model(), FOUR, Code.CALIBRATION_SOURCE),
    ],
)
def test_what_cannot_be_used_is_refused(
    source: Any, reader: TextModel, options: TextOptions, code: Code
) -> None:
    with pytest.raises(QcError) as found:
        open_text(source, reader, options)
    assert found.value.code is code


def test_a_broken_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "abcd"}\n{"text"')
    with pytest.raises(QcError) as found:
        open_text(tmp_path / "a.jsonl", model(), FOUR)
    assert found.value.code is Code.CALIBRATION_SOURCE


@pytest.mark.parametrize(
    "source",
    [
        "data.npz",
        [{"input_ids": np.ones((1, 3), int), "attention_mask": 0, "past_key_values.0.key": 0}],
        {"input_ids": np.ones((1, 3), int)},
        [np.ones((1, 3), np.float32)],
    ],
)
def test_feeds_are_not_taken_for_text(source: Any) -> None:
    assert not is_text(source, DECODER)
    assert not is_text(["abc"], (InputSpec("pixels", FLOAT, ("batch", 3)),))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (5, "found 5"),
        (None, "found None"),
        ({"input_ids": [[1, 2], [3]]}, "no array of tokens"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}, r"under an attention_mask \[1, 2"),
        ([1, 2, -100, 3], "found the token -100"),
    ],
)
def test_items_that_hold_no_tokens_are_refused(item: Any, said: str) -> None:
    with pytest.raises(QcError, match=said) as caught:
        rows(["abcdefgh", item], FOUR)
    assert caught.value.code is Code.CALIBRATION_SOURCE
    assert caught.value.diagnostic.hint


def test_negative_numbers_under_a_mask_of_zeros_are_padding() -> None:
    items = [{"input_ids": [1, 2, 3, 4, -100], "attention_mask": [1, 1, 1, 1, 0]}]
    assert rows(items, FOUR) == [[1, 2, 3, 4]]


def test_a_whole_text_where_a_path_is_wanted_is_told_so() -> None:
    with pytest.raises(QcError, match="list of strings") as caught:
        open_feeds("a long text " * 500, DECODER)
    assert caught.value.code is Code.CALIBRATION_SOURCE

"""Calibration text: strings, files, token arrays and data sets become feeds of a language model."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.feeds import FeedSource
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import TextOptions
from qcompiler.runtime.inputs import InputSpec

__all__ = ["TextModel", "feed_of", "is_text", "open_text"]

Tokens = npt.NDArray[np.int64]

_WHERE = "calibration"
_FILES = (".txt", ".md", ".json", ".jsonl")
_COLUMNS = ("text", "content", "sentence", "prompt")
_ENOUGH = 16  # times the tokens that are wanted: more of a large source is not read
_FORMS = (
    "give a list of strings, a .txt, .json or .jsonl file, an array of tokens [n, length], or a "
    "data set with a column 'text' or 'input_ids'"
)


@dataclasses.dataclass(frozen=True)
class TextModel:
    """What text needs of a language model.

    Attributes:
        specs: Its inputs; ``input_ids`` is among them.
        encode: Text to tokens; None when the model came without a tokenizer.
        longest: Tokens it takes at most; None when that is not known.
    """

    specs: tuple[InputSpec, ...]
    encode: Callable[[str], Sequence[int]] | None
    longest: int | None = None

    @property
    def packs(self) -> bool:
        """Whether texts are put behind one another and cut: it reads from left to right.

        A model that has a cache does. Others get one text a feed.
        """
        return any(_is_past(spec) for spec in self.specs)


def is_text(calibration: Any, specs: Sequence[InputSpec]) -> bool:
    """Whether the source holds text or tokens alone, for a model that takes tokens."""
    names = {spec.name for spec in specs}
    if "input_ids" not in names:
        return False
    if isinstance(calibration, str | os.PathLike):
        return pathlib.Path(calibration).suffix.lower() in _FILES
    if isinstance(calibration, np.ndarray):
        return calibration.ndim == 2 and calibration.dtype.kind in "iu"
    if isinstance(calibration, Mapping | Iterator) or not isinstance(calibration, Iterable):
        return False
    first = next(iter(calibration), None)
    if isinstance(first, Mapping):
        has_text = any(isinstance(first.get(column), str) for column in _COLUMNS)
        return has_text or ("input_ids" in first and not names <= set(first))
    tokens = isinstance(first, np.ndarray) and first.ndim in (1, 2) and first.dtype.kind in "iu"
    return isinstance(first, str) or (tokens and len(names) > 1)


def open_text(
    calibration: Any, model: TextModel, options: TextOptions
) -> tuple[FeedSource, tuple[Diagnostic, ...]]:
    """Feeds of ``options.length`` tokens, one text each.

    Args:
        calibration: What :func:`is_text` says yes to.
        model: Who will read it.
        options: How many, how long, and the seed of the choice.

    Returns:
        The feeds, and QC209 when there are fewer than asked for.

    Raises:
        QcError: QC201 no text; QC208 a file that cannot be read; QC212 there is no tokenizer; QC411
            more tokens than the model takes.
    """
    _check_length(options.length, model.longest, "text.length")
    rows: list[Tokens] = []
    wanted = _ENOUGH * options.samples * options.length
    read = 0
    for item in _items(calibration):
        found = _tokens(item, model)
        rows += found
        read += sum(map(len, found))
        if read >= wanted:
            break
    chunks = _packed(rows, options.length) if model.packs else _cut(rows, options.length)
    if not chunks:
        raise QcError(
            Code.EMPTY_CALIBRATION,
            _WHERE,
            f"found {read} tokens, wanted at least one text of {options.length}",
            "give more text, or lower text.length",
        )
    order = np.random.default_rng(options.seed).permutation(len(chunks))[: options.samples]
    feeds = [feed_of(chunks[i][None], model.specs) for i in sorted(order)]
    said: tuple[Diagnostic, ...] = ()
    if len(feeds) < options.samples:
        message = f"{len(feeds)} texts of {options.length} tokens, asked for {options.samples}"
        values = {"samples": len(feeds), "asked": options.samples}
        said = (
            Diagnostic(
                Code.FEW_SAMPLES, _WHERE, message, "give more text, or lower text.samples", values
            ),
        )
    source = FeedSource(lambda: iter(feeds), model.specs, reiterable=True, count_hint=len(feeds))
    return source, said


def feed_of(tokens: Tokens, specs: Sequence[InputSpec]) -> Feed:
    """All the inputs of a language model for whole texts without a past.

    Args:
        tokens: ``[batch, sequence]``.
        specs: The inputs.

    Raises:
        QcError: QC202, an input cannot be made of tokens.
    """
    batch, length = tokens.shape
    made = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "token_type_ids": np.zeros_like(tokens),
        "position_ids": np.broadcast_to(np.arange(length), tokens.shape),
    }
    feed: dict[str, npt.NDArray[Any]] = {}
    for spec in specs:
        if spec.name in made:
            feed[spec.name] = np.ascontiguousarray(made[spec.name], spec.dtype)
        elif _is_past(spec):
            sizes = [batch, *(dim if isinstance(dim, int) else 0 for dim in spec.shape[1:])]
            feed[spec.name] = np.zeros(sizes, spec.dtype)
        else:
            raise QcError(
                Code.FEED_NAME,
                spec.name,
                "the input cannot be made of text",
                "give whole feeds: dicts from input names to arrays",
            )
    return feed


def _is_past(spec: InputSpec) -> bool:
    return spec.name.startswith("past") and len(spec.shape) > 1


def _check_length(length: int, longest: int | None, where: str) -> None:
    if longest is not None and length > longest:
        raise QcError(
            Code.USAGE,
            where,
            f"found {length} tokens, the model takes {longest} at most",
            f"set text.length to {longest} or less",
        )


def _items(calibration: Any) -> Iterator[Any]:
    if not isinstance(calibration, str | os.PathLike):
        yield from calibration
        return
    path = pathlib.Path(calibration)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            yield from found if isinstance(found, list) else [found]
        elif path.suffix.lower() == ".jsonl":
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        else:
            yield text
    except (OSError, ValueError) as error:
        raise QcError(
            Code.CALIBRATION_SOURCE, str(path), f"cannot be read as text: {error}", _FORMS
        ) from error


def _tokens(item: Any, model: TextModel) -> list[Tokens]:
    """Tokens of one item; a mapping may hold several texts."""
    if isinstance(item, Mapping):
        if "input_ids" in item:
            return _rows(item["input_ids"], item.get("attention_mask"), model)
        item = next((item[column] for column in _COLUMNS if column in item), item)
    if not isinstance(item, str):
        if isinstance(item, Mapping):
            raise QcError(
                Code.CALIBRATION_SOURCE,
                _WHERE,
                f"found an object with the keys {', '.join(map(str, item))}",
                _FORMS,
            )
        return _rows(item, None, model)
    if model.encode is None:
        raise QcError(
            Code.NO_TOKENIZER,
            _WHERE,
            "found text, and the model came without a tokenizer",
            "put tokenizer.json into the model's folder, or give tokens",
        )
    return [np.asarray(model.encode(item), np.int64)]


def _rows(ids: Any, mask: Any, model: TextModel) -> list[Tokens]:
    """Rows of an array of tokens, without their padding."""
    rows = _array(ids)
    if rows.dtype.kind not in "iu" or rows.ndim not in (1, 2):
        found = repr(ids)[:80] if rows.ndim == 0 else f"{rows.dtype}{list(rows.shape)}"
        raise QcError(Code.CALIBRATION_SOURCE, _WHERE, f"found {found}", _FORMS)
    rows = np.atleast_2d(rows)
    _check_length(rows.shape[1], model.longest, _WHERE)
    keep = np.ones(rows.shape, bool) if mask is None else np.atleast_2d(_array(mask)) != 0
    if keep.shape != rows.shape:
        raise QcError(
            Code.CALIBRATION_SOURCE,
            _WHERE,
            f"found tokens {list(rows.shape)} under an attention_mask {list(keep.shape)}",
            "give a mask of the tokens' shape, or none",
        )
    if (rows[keep] < 0).any():
        raise QcError(
            Code.CALIBRATION_SOURCE,
            _WHERE,
            f"found the token {rows[keep].min()}, wanted numbers from 0 on",
            "leave padding out, or give an attention_mask that is 0 there",
        )
    return [row[kept].astype(np.int64) for row, kept in zip(rows, keep, strict=True)]


def _array(given: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise QcError(
            Code.CALIBRATION_SOURCE,
            _WHERE,
            f"found no array of tokens: {error}",
            "give texts of different lengths one by one",
        ) from error


def _packed(rows: Sequence[Tokens], length: int) -> list[Tokens]:
    """All texts behind one another, cut; what is left at the end is dropped.

    Rows that have the length already stay as they are.
    """
    whole = [row for row in rows if len(row) == length]
    rest = [row for row in rows if len(row) != length]
    stream = np.concatenate([np.zeros(0, np.int64), *rest])
    count = len(stream) // length
    return [*whole, *stream[: count * length].reshape(count, length)]


def _cut(rows: Sequence[Tokens], length: int) -> list[Tokens]:
    return [row[:length] for row in rows if len(row)]

"""Calibration text: strings, files, token arrays and data sets become feeds of a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.feeds import FeedSource
from qcompiler.calibration.text_source import COLUMNS, FORMS, items_of
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import TextOptions
from qcompiler.runtime.inputs import InputSpec

__all__ = ["TextModel", "feed_of", "open_text"]

Tokens = npt.NDArray[np.int64]

_WHERE = "calibration"
_ENOUGH = 16  # times the tokens that are wanted: more of a large source is not read


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


def open_text(
    calibration: Any, model: TextModel, options: TextOptions
) -> tuple[FeedSource, tuple[Diagnostic, ...]]:
    """Feeds of ``options.length`` tokens, one text each.

    Args:
        calibration: What :func:`~qcompiler.calibration.text_source.is_text` says yes to.
        model: Who will read it.
        options: How many, how long, and the seed of the choice.

    Returns:
        The feeds; QC209 when there are fewer than asked for, QC215 when texts were longer.

    Raises:
        QcError: QC201 no text; QC208 a file that cannot be read; QC212 there is no tokenizer; QC411
            ``options.length`` is more than the model takes.
    """
    if model.longest is not None and options.length > model.longest:
        raise QcError(
            Code.USAGE,
            "text.length",
            f"found {options.length} tokens, the model takes {model.longest} at most",
            f"set text.length to {model.longest} or less",
        )
    rows: list[Tokens] = []
    wanted = _ENOUGH * options.samples * options.length
    read = 0
    for item in items_of(calibration):
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
    said = () if model.packs else _told_cut(rows, options.length)
    if len(feeds) < options.samples:
        message = f"{len(feeds)} texts of {options.length} tokens, asked for {options.samples}"
        values = {"samples": len(feeds), "asked": options.samples}
        said += (
            Diagnostic(
                Code.FEW_SAMPLES, _WHERE, message, "give more text, or lower text.samples", values
            ),
        )
    source = FeedSource(
        lambda: iter(feeds), model.specs, reiterable=True, count_hint=len(feeds), of_text=True
    )
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


def _tokens(item: Any, model: TextModel) -> list[Tokens]:
    """Tokens of one item; a mapping may hold several texts."""
    if isinstance(item, Mapping):
        if "input_ids" in item:
            return _rows(item["input_ids"], item.get("attention_mask"), model)
        item = next((item[column] for column in COLUMNS if column in item), item)
    if not isinstance(item, str):
        if isinstance(item, Mapping):
            raise QcError(
                Code.CALIBRATION_SOURCE,
                _WHERE,
                f"found an object with the keys {', '.join(map(str, item))}",
                FORMS,
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
        raise QcError(Code.CALIBRATION_SOURCE, _WHERE, f"found {found}", FORMS)
    rows = np.atleast_2d(rows)
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


def _told_cut(rows: Sequence[Tokens], length: int) -> tuple[Diagnostic, ...]:
    """What is told where the ends of long texts are not read."""
    over = [len(row) - length for row in rows if len(row) > length]
    if not over:
        return ()
    told = Diagnostic(
        Code.TEXT_CUT,
        _WHERE,
        f"{len(over)} of {len(rows)} texts are longer than text.length = {length}:"
        f" {sum(over)} tokens at their ends are not read",
        "raise text.length, or cut the texts",
        {"cut": len(over), "texts": len(rows), "tokens": sum(over)},
    )
    return (told,)

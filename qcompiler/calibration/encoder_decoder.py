"""Feeds of an encoder and of the decoder behind it, from feeds of both.

What a feed of both says is what a user has: sound and the text that was spoken. What the decoder
reads of the sound are the outputs of the encoder: ``present_key_cross_0`` is its input
``past_key_cross_0``. Its other pasts are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.feeds import FeedSource, open_feeds
from qcompiler.diagnostics import Code
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.inputs import InputSpec, input_specs
from qcompiler.runtime.session import open_session, run

__all__ = ["decoder_feed", "part_feeds"]

_PAST, _PRESENT = "past_", "present_"


def decoder_feed(
    tokens: npt.NDArray[Any], made: Mapping[str, npt.NDArray[Any]], specs: Sequence[InputSpec]
) -> dict[str, npt.NDArray[Any]]:
    """A feed of the decoder, nothing written yet.

    Args:
        tokens: int64 ``[batch, sequence]``.
        made: Outputs of the encoder by name.
        specs: Inputs of the decoder.
    """
    feed: dict[str, npt.NDArray[Any]] = {"input_ids": tokens}
    for spec in specs:
        if not spec.name.startswith(_PAST):
            continue
        given = made.get(spec.name.replace(_PAST, _PRESENT, 1))
        feed[spec.name] = _empty(spec, len(tokens)) if given is None else given
    return feed


def _empty(spec: InputSpec, batch: int) -> npt.NDArray[np.float32]:
    heads, width = spec.shape[1], spec.shape[3]
    assert isinstance(heads, int), "a cache says how many heads it has"
    assert isinstance(width, int), "a cache says how wide they are"
    return np.zeros((batch, heads, 0, width), np.float32)


def part_feeds(
    calibration: Any, encoder: ir.Model, decoder: ir.Model, limit: int | None
) -> tuple[Callable[[], Iterator[Feed]], Callable[[], Iterator[Feed]]]:
    """Passes over the feeds of the encoder, and over those of the decoder.

    The decoder reads what the float encoder makes, computed anew in each pass.

    Args:
        calibration: Feeds of ``audio_features`` and ``input_ids``, in any form that
            :func:`~qcompiler.calibration.feeds.open_feeds` takes.
        encoder: The float encoder.
        decoder: The decoder.
        limit: At most so many feeds.

    Raises:
        QcError: QC201 to QC208, the data cannot be used.
    """
    of_encoder, of_decoder = input_specs(encoder), input_specs(decoder)
    tokens = [spec for spec in of_decoder if not spec.name.startswith(_PAST)]
    source = open_feeds(calibration, [*of_encoder, *tokens], limit)
    feeds: FeedSource | list[Feed] = source if source.reiterable else list(source)
    names = {spec.name for spec in of_encoder}

    def heard() -> Iterator[Feed]:
        for feed in feeds:
            yield {name: feed[name] for name in names}

    def read() -> Iterator[Feed]:
        session = open_session(encoder, code=Code.FLOAT_MODEL_FAILS)
        for feed in feeds:
            made = run(session, {name: feed[name] for name in names})
            yield decoder_feed(feed["input_ids"], made, of_decoder)

    return heard, read

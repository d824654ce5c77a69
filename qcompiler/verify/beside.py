"""The float model that an artifact is held against, and what both are run on."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from qcompiler.artifact import Artifact
from qcompiler.calibration.encoder_decoder import part_feeds
from qcompiler.calibration.feeds import FeedSource
from qcompiler.frontends import open_model
from qcompiler.frontends.data import open_data
from qcompiler.frontends.decoder.last_logits import keep_last_logits
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import Recipe

__all__ = ["FloatSide", "float_side"]


@dataclasses.dataclass(frozen=True, slots=True)
class FloatSide:
    """A float model beside an artifact.

    Attributes:
        model: It gives the outputs that the artifact gives.
        file: What holds this model; "" where none does.
        example: A feed that it runs on, when the model told one.
        feeds: The user's data, in the model's terms; None when none were given.
    """

    model: ir.Model
    file: str
    example: Feed | None
    feeds: FeedSource | None


def float_side(
    artifact: Artifact, against: Any, data: Any = None, *, most: int | None = None
) -> FloatSide:
    """What ``artifact`` was compiled from, with the wishes of its recipe that outputs depend on.

    Args:
        artifact: Of an encoder-decoder one of its ``parts``.
        against: The float model, anything :func:`qcompiler.qcompile` takes, or what
            :func:`qcompiler.frontends.open_model` made of it; left as it is.
        data: Feeds as for calibration, text too; None for none.
        most: Samples to take at most.

    Raises:
        QcError: The float model or the data cannot be used.
    """
    whole = open_model(against)
    opened = whole.part(artifact.model)
    recipe = Recipe.of(artifact.manifest["recipe"])
    model, file = opened.model, opened.source
    if recipe.last_logits and opened is whole:
        model, file = model.clone(), ""
        keep_last_logits(model, opened.source)
    feeds = None
    if data is not None:
        if whole.encoder is not None:
            heard, read = part_feeds(data, whole.encoder.model, whole.model, most)
            data = read if opened is whole else heard
        feeds, _ = open_data(data, model, opened.source, recipe.text, most)
    return FloatSide(model, file, opened.example, feeds)

"""The float model that an artifact is held against, and what both are run on."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from qcompiler.artifact import Artifact
from qcompiler.calibration.encoder_decoder import part_feeds
from qcompiler.calibration.feeds import FeedSource
from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends import open_model
from qcompiler.frontends.data import open_data
from qcompiler.frontends.decoder.last_logits import keep_last_logits
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import Recipe
from qcompiler.runtime.inputs import InputSpec, input_specs

__all__ = ["FloatSide", "check_inputs", "float_side"]


def check_inputs(reference: ir.Model, other: ir.Model, source: str) -> None:
    """Refuse two models of which one cannot be fed what the other takes.

    Args:
        reference: The float model.
        other: The quantized one.
        source: The user's name for the float model.

    Raises:
        QcError: QC411, an input is missing, or has other sizes.
    """
    has = {spec.name: spec for spec in input_specs(reference)}
    for spec in input_specs(other):
        given = has.get(spec.name)
        if given is None or not _may_be_fed_alike(spec, given):
            raise QcError(
                Code.USAGE,
                source,
                f"the quantized model takes {spec}, this one takes "
                + (str(given) if given else ", ".join(has) or "nothing"),
                "name the float model that it was compiled from",
            )


def _may_be_fed_alike(a: InputSpec, b: InputSpec) -> bool:
    if not (a.rank_known and b.rank_known):
        return True
    sizes = zip(a.shape, b.shape, strict=False)
    fixed = ((x, y) for x, y in sizes if isinstance(x, int) and isinstance(y, int))
    return len(a.shape) == len(b.shape) and all(x == y for x, y in fixed)


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
    check_inputs(model, artifact.model, opened.source)
    feeds = None
    if data is not None:
        if whole.encoder is not None:
            heard, read = part_feeds(data, whole.encoder.model, whole.model, most)
            data = read if opened is whole else heard
        feeds, _ = open_data(data, model, opened.source, recipe.text, most)
    return FloatSide(model, file, opened.example, feeds)

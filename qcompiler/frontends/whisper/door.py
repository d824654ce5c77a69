"""From a folder or a module in memory to the graphs of a Whisper."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qcompiler.frontends.admission import admit, with_diagnostics
from qcompiler.frontends.config_file import class_assumed, said_classes, said_config
from qcompiler.frontends.decoder import checkpoint
from qcompiler.frontends.decoder.door import read_config, without_tokenizer
from qcompiler.frontends.decoder.genai import (
    GENERATION,
    TOKENIZER,
    generation_of_folder,
    tokenizer_files,
)
from qcompiler.frontends.decoder.writer import refuse_unused
from qcompiler.frontends.opened import Opened
from qcompiler.frontends.whisper import genai
from qcompiler.frontends.whisper.decoder import build_decoder
from qcompiler.frontends.whisper.encoder import build_encoder
from qcompiler.frontends.whisper.example import example_feeds
from qcompiler.frontends.whisper.geometry import Geometry
from qcompiler.ir.lazy import Stored

if TYPE_CHECKING:
    import transformers

__all__ = ["is_whisper", "open_folder", "open_pretrained"]

_CLASS = "WhisperForConditionalGeneration"


def is_whisper(model: pathlib.Path | Any) -> bool:
    """Whether a transformers folder, or a model in memory, is a Whisper that makes text."""
    if isinstance(model, pathlib.Path):
        names = said_classes(model)
        return _CLASS in names or (not names and said_config(model).get("model_type") == "whisper")
    return any(base.__name__ == _CLASS for base in type(model).__mro__)


def open_folder(folder: pathlib.Path) -> Opened:
    """Build the graphs of a transformers folder; none of its code runs.

    Raises:
        QcError: QC707, a part of the architecture or the folder is not supported; QC703, a file of
            weights is missing; QC301, a weight is not finite; QC607, the encoder does not run.
    """
    config = read_config(folder)
    generation = generation_of_folder(folder, config)
    files = {**tokenizer_files(folder), **genai.processor_files(folder)}
    geometry = Geometry.of(config, str(folder))
    opened = _open(geometry, checkpoint.from_folder(folder), generation, files, str(folder))
    if said_classes(folder):
        return opened
    return with_diagnostics(opened, class_assumed(folder, _CLASS))


def open_pretrained(model: transformers.PreTrainedModel, source: str) -> Opened:
    """Build the graphs of a model in memory, whose weights they share.

    Tokenizer and processor are those in the folder that the model was loaded from, where there
    are any; how text is made is what the model says.

    Raises:
        QcError: As :func:`open_folder`.
    """
    folder = pathlib.Path(getattr(model, "name_or_path", "") or "/nowhere")
    said = model.generation_config
    generation = {**model.config.to_dict(), **said.to_dict()}
    files = {
        **tokenizer_files(folder),
        **genai.processor_files(folder),
        GENERATION: said.to_json_string().encode(),
    }
    geometry = Geometry.of(model.config, source)
    return _open(geometry, checkpoint.from_module(model), generation, files, source)


def _open(
    geometry: Geometry,
    weights: Mapping[str, Stored],
    generation: Mapping[str, Any],
    files: Mapping[str, bytes],
    source: str,
) -> Opened:
    encoder, heard = build_encoder(geometry, weights, source)
    decoder, read = build_decoder(geometry, weights, source)
    refuse_unused(weights, heard | read, source)
    parts = [admit(model, "transformers", source) for model in (encoder, decoder)]
    feeds = example_feeds(geometry, parts[0].model, parts[1].model, files.get(TOKENIZER))
    listening, opened = (
        dataclasses.replace(part, example=feed) for part, feed in zip(parts, feeds, strict=True)
    )
    opened = with_diagnostics(opened, *without_tokenizer(source, files))
    companions = genai.companions(geometry, generation, files)
    return dataclasses.replace(opened, companions=companions, encoder=listening)

"""From a folder, a GGUF file or a module in memory to the decoder's graph."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.frontends.admission import admit, with_diagnostics
from qcompiler.frontends.config_file import class_assumed, said_classes, said_config
from qcompiler.frontends.decoder import checkpoint, genai
from qcompiler.frontends.decoder.builder import build
from qcompiler.frontends.decoder.families import FAMILIES
from qcompiler.frontends.decoder.geometry import PLAIN_EXPORT, Geometry
from qcompiler.frontends.decoder.quantized import Layout, layout_of, take_quantized
from qcompiler.frontends.opened import Opened
from qcompiler.frontends.quiet_loading import without_bars
from qcompiler.frontends.tokenizer import encoder_of
from qcompiler.ir.lazy import Stored
from qcompiler.pipeline.contract import Feed

if TYPE_CHECKING:
    import transformers

__all__ = ["is_decoder", "open_folder", "open_gguf", "open_pretrained"]

_LENGTH = 32
_TEXTS = (
    "The keeper climbed the narrow stairs every evening to light the lamp before the boats came.",
    "To find out how much energy a house needs, first measure how quickly it loses heat at night.",
)
_ENDINGS = ("ForCausalLM", "GPT2LMHeadModel")


def is_decoder(model: pathlib.Path | transformers.PreTrainedModel) -> bool:
    """Whether a transformers folder, or a model, is a decoder-only language model.

    A model's class tells: its configuration may name another, or none yet. A folder that names no
    class is one where it holds the weights of one.
    """
    if isinstance(model, pathlib.Path):
        names, both = said_classes(model), said_config(model).get("is_encoder_decoder")
        if not names:
            return not both and _has_head(model)
    else:
        names = [type(model).__name__]
        both = getattr(model.config, "is_encoder_decoder", False)
    return not both and names[0].endswith(_ENDINGS)


def _has_head(folder: pathlib.Path) -> bool:
    """Whether a folder that names no class holds weights of a known decoder and of its head."""
    family = FAMILIES.get(str(said_config(folder).get("model_type")))
    if family is None:
        return False
    if read_config(folder).tie_word_embeddings:
        return True
    return any(name.startswith(family.top["head"]) for name in checkpoint.from_folder(folder))


def open_folder(folder: pathlib.Path) -> Opened:
    """Build the graph of a transformers folder; no weight is read yet, and none of its code runs.

    Layers that GPTQ, AWQ or AutoRound quantized stay the integers that they are.

    Raises:
        QcError: QC707, the architecture, a part of it or the folder is not supported; QC703, a
            file of weights is missing; QC301, a weight is not finite.
    """
    config = read_config(folder)
    layout = layout_of(folder, config)
    config.quantization_config = None  # understood; what is left is that of the float model
    generation = genai.generation_of_folder(folder, config)
    files = genai.tokenizer_files(folder)
    read = functools.partial(checkpoint.from_folder, folder)
    opened = _open(config, read, generation, files, str(folder), layout)
    if said_classes(folder):
        return opened
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    taken = str(CLASSES[config.model_type])
    return with_diagnostics(opened, class_assumed(folder, taken))


def read_config(folder: pathlib.Path) -> Any:
    """The configuration of a transformers folder; none of its code runs.

    Raises:
        QcError: QC707, transformers cannot read it.
    """
    import transformers

    said = said_config(folder).get("quantization_config")
    if not isinstance(said, Mapping | None):
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(folder),
            f"quantization_config of config.json is {said!r}, wanted an object with quant_method",
            "copy config.json again from where the checkpoint comes from",
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its classes check their fields by errors of many kinds
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(folder),
            f"transformers cannot read config.json: {' '.join(str(error).split())[:300]}",
            "the folder needs the config.json of a class that transformers knows",
        ) from error
    return config


def open_gguf(path: pathlib.Path) -> Opened:
    """Load a GGUF file through transformers, which dequantizes it in memory, and build its graph.

    Raises:
        QcError: QC707, transformers cannot load it; and as :func:`open_folder`.
    """
    import torch
    import transformers

    try:
        with without_bars():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
            )
    except Exception as error:  # its readers unpack bytes and fail in many ways
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(path),
            f"transformers cannot load the file: {' '.join(str(error).split())[:300]}",
            "GGUF needs the packages gguf and accelerate, and an architecture transformers knows",
        ) from error
    model.config.quantization_config = None  # dequantized: it says how the file was
    tokenizer, why = genai.tokenizer_of_gguf(path)
    return _open_module(model, tokenizer, str(path), why)


def open_pretrained(model: transformers.PreTrainedModel, source: str) -> Opened:
    """Build the graph of a model in memory, whose weights it shares.

    The tokenizer is the one in the folder that the model was loaded from, where there is one.

    Raises:
        QcError: As :func:`open_folder`.
    """
    folder = pathlib.Path(getattr(model, "name_or_path", "") or "/nowhere")
    return _open_module(model, genai.tokenizer_files(folder), source)


def _open_module(
    model: transformers.PreTrainedModel,
    tokenizer: Mapping[str, bytes],
    source: str,
    why: str = "",
) -> Opened:
    generation = {**model.config.to_dict(), **model.generation_config.to_dict()}
    return _open(
        model.config, lambda: checkpoint.from_module(model), generation, tokenizer, source, why=why
    )


def _open(
    config: Any,
    read: Callable[[], Mapping[str, Stored]],
    generation: Mapping[str, Any],
    tokenizer: Mapping[str, bytes],
    source: str,
    layout: Layout | None = None,
    *,
    why: str = "",
) -> Opened:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"decoders of the architecture {config.model_type!r} are not known; "
            f"{nearest(config.model_type, FAMILIES)}",
            PLAIN_EXPORT,
        )
    geometry = Geometry.of(config, source, family)
    weights, quantized = take_quantized(checkpoint.with_base(read(), family), layout, source)
    model = build(geometry, family, weights, source, quantized)
    opened = admit(model, "transformers", source, _example(geometry, model, tokenizer))
    opened = with_diagnostics(opened, *without_tokenizer(source, tokenizer, why))
    return dataclasses.replace(opened, companions=genai.companions(geometry, generation, tokenizer))


def without_tokenizer(
    source: str, files: Mapping[str, bytes], why: str = ""
) -> tuple[Diagnostic, ...]:
    """What is told when no tokenizer, or half of it, lies beside the model."""
    missing = genai.missing_files(files)
    if not missing:
        return ()
    told = Diagnostic(
        Code.TOKENIZER_MISSING,
        source,
        f"the artifact holds no {' and no '.join(missing)}{': ' + why if why else ''}; the model"
        " runs in ONNX Runtime and, on tokens, in ONNX Runtime GenAI, but `qcompile generate`"
        " cannot read a prompt",
        "tokenizer.save_pretrained(OUT) into the artifact's folder, or compile a folder that holds"
        " model and tokenizer",
    )
    return (told,)


def _example(geometry: Geometry, model: ir.Model, tokenizer: Mapping[str, bytes]) -> Feed:
    """Two texts without a past: English where there is a tokenizer, else seeded tokens."""
    length = min(_LENGTH, geometry.positions)
    ids = example_tokens(tokenizer.get("tokenizer.json"), length)
    if ids is None or ids.max() >= geometry.vocabulary:
        ids = np.random.default_rng(0).integers(0, geometry.vocabulary, (len(_TEXTS), length))
    feed: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in model.graph.inputs:
        if value.name not in feed:
            shape = (len(ids), geometry.kv_heads, 0, geometry.head_width)
            feed[value.name or ""] = np.zeros(shape, np.float32)
    return feed


def example_tokens(tokenizer: bytes | None, length: int) -> npt.NDArray[np.int64] | None:
    """The example texts in tokens, as long as the shorter of them, at most ``length``."""
    if tokenizer is None:
        return None
    encode = encoder_of(tokenizer)
    rows = [encode(text)[:length] for text in _TEXTS]
    shortest = min(map(len, rows))
    return np.asarray([row[:shortest] for row in rows], np.int64) if shortest else None

"""From a folder, a GGUF file or a module in memory to the decoder's graph."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.frontends.admission import admit
from qcompiler.frontends.decoder import checkpoint
from qcompiler.frontends.decoder.builder import build
from qcompiler.frontends.decoder.families import FAMILIES
from qcompiler.frontends.decoder.geometry import PLAIN_EXPORT, Geometry
from qcompiler.frontends.opened import Opened
from qcompiler.ir.lazy import Stored
from qcompiler.pipeline.contract import Feed

if TYPE_CHECKING:
    import transformers

__all__ = ["is_decoder", "open_folder", "open_gguf", "open_pretrained"]

_BATCH, _LENGTH = 2, 16
_ENDINGS = ("ForCausalLM", "GPT2LMHeadModel")


def is_decoder(config: pathlib.Path | Any) -> bool:
    """Whether a transformers folder, or a configuration, is of a decoder-only language model."""
    if isinstance(config, pathlib.Path):
        said = _read_config(config)
        names, both = said.get("architectures") or [], said.get("is_encoder_decoder")
    else:
        names = getattr(config, "architectures", None) or []
        both = getattr(config, "is_encoder_decoder", False)
    return bool(names) and not both and str(names[0]).endswith(_ENDINGS)


def open_folder(folder: pathlib.Path) -> Opened:
    """Build the graph of a transformers folder; no weight is read yet, and none of its code runs.

    Raises:
        QcError: QC707, the architecture, a part of it or the folder is not supported; QC703, a
            file of weights is missing; QC301, a weight is not finite.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(folder),
            f"transformers cannot read config.json: {' '.join(str(error).split())[:300]}",
            "the folder needs the config.json of a class that transformers knows",
        ) from error
    return _open(config, lambda: checkpoint.from_folder(folder), str(folder))


def open_gguf(path: pathlib.Path) -> Opened:
    """Load a GGUF file through transformers, which dequantizes it in memory, and build its graph.

    Raises:
        QcError: QC707, transformers cannot load it; and as :func:`open_folder`.
    """
    import torch
    import transformers

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(path),
            f"transformers cannot load the file: {' '.join(str(error).split())[:300]}",
            "GGUF needs the packages gguf and accelerate, and an architecture transformers knows",
        ) from error
    model.config.quantization_config = None  # dequantized: it says how the file was
    return open_pretrained(model, str(path))


def open_pretrained(model: transformers.PreTrainedModel, source: str) -> Opened:
    """Build the graph of a model in memory, whose weights it shares.

    Raises:
        QcError: As :func:`open_folder`.
    """
    return _open(model.config, lambda: checkpoint.from_module(model), source)


def _open(config: Any, read: Any, source: str) -> Opened:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            source,
            f"decoders of the architecture {config.model_type!r} are not known; "
            f"{nearest(config.model_type, FAMILIES)}",
            PLAIN_EXPORT,
        )
    geometry = Geometry.of(config, source, rotary="positions" not in family.top)
    weights: Mapping[str, Stored] = read()
    model = build(geometry, family, weights, source)
    return admit(model, "transformers", source, _example(geometry, model))


def _example(geometry: Geometry, model: ir.Model) -> Feed:
    """Two seeded token sequences without a past."""
    rng = np.random.default_rng(0)
    length = min(_LENGTH, geometry.positions)
    ids = rng.integers(0, geometry.vocabulary, (_BATCH, length))
    feed: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in model.graph.inputs:
        if value.name not in feed:
            shape = (_BATCH, geometry.kv_heads, 0, geometry.head_width)
            feed[value.name or ""] = np.zeros(shape, np.float32)
    return feed


def _read_config(folder: pathlib.Path) -> Mapping[str, Any]:
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # who loads the folder says what is wrong with it
    return said if isinstance(said, dict) else {}

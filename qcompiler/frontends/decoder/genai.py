"""What ONNX Runtime GenAI wants beside a decoder: its configuration and the tokenizer's files."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from qcompiler.frontends.config_file import read_table
from qcompiler.frontends.decoder.geometry import Geometry
from qcompiler.frontends.opened import Companions
from qcompiler.runtime.settings import Level, SessionSettings

__all__ = [
    "GENERATION",
    "TOKENIZER",
    "companions",
    "generation_of_folder",
    "missing_files",
    "or_default",
    "session_options",
    "special_tokens",
    "tokenizer_files",
    "tokenizer_of_gguf",
]

_CONFIG = "genai_config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"  # without it there is none
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER = (
    TOKENIZER,
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
_LEVELS: Mapping[Level, str] = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_ALL",  # GenAI knows no level between
    "all": "ORT_ENABLE_ALL",
}
# Keys of a generation configuration that GenAI's search knows by the same names.
_SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}


def companions(
    geometry: Geometry, generation: Mapping[str, Any], tokenizer: Mapping[str, bytes]
) -> Companions:
    """The files beside the model, once its session options are known.

    Args:
        geometry: Of the decoder.
        generation: Special tokens and search defaults, by transformers' names.
        tokenizer: Files of the tokenizer, by name.
    """

    def files(
        settings: SessionSettings, encoder: SessionSettings | None = None
    ) -> Mapping[str, bytes]:
        config = json.dumps(_config(geometry, generation, settings), indent=1) + "\n"
        return {_CONFIG: config.encode(), **tokenizer}

    return files


def generation_of_folder(folder: pathlib.Path, config: Any) -> dict[str, Any]:
    """``generation_config.json`` over what config.json says.

    Raises:
        QcError: QC707, the file is damaged.
    """
    said = config.to_dict()
    path = folder / GENERATION
    if path.is_file():
        said.update(read_table(path))
    return dict(said)


def tokenizer_files(folder: pathlib.Path) -> dict[str, bytes]:
    """The tokenizer's files that lie in a folder.

    Raises:
        QcError: QC707, its configuration is damaged.
    """
    if (folder / _TOKENIZER_CONFIG).is_file():
        read_table(folder / _TOKENIZER_CONFIG)
    paths = (folder / name for name in _TOKENIZER)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def missing_files(tokenizer: Mapping[str, bytes]) -> tuple[str, ...]:
    """Names of the files without which ONNX Runtime GenAI reads no text."""
    return tuple(name for name in (TOKENIZER, _TOKENIZER_CONFIG) if name not in tokenizer)


def tokenizer_of_gguf(path: pathlib.Path) -> tuple[dict[str, bytes], str]:
    """The tokenizer inside a GGUF file, as transformers writes it, or none and why."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
    except Exception as error:  # the tokenizers package raises nothing narrower
        return {}, f"transformers cannot read the file's: {' '.join(str(error).split())[:200]}"
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return tokenizer_files(pathlib.Path(folder)), ""


def _config(
    geometry: Geometry, generation: Mapping[str, Any], settings: SessionSettings
) -> dict[str, Any]:
    return {
        "model": {
            **special_tokens(generation),
            "type": "decoder",
            "vocab_size": geometry.vocabulary,
            "context_length": geometry.positions,
            "decoder": {
                "filename": "model.onnx",
                "session_options": session_options(settings),
                "hidden_size": geometry.width,
                "head_size": geometry.head_width,
                "num_attention_heads": geometry.heads,
                "num_key_value_heads": geometry.kv_heads,
                "num_hidden_layers": geometry.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            **{
                name: or_default(generation.get(name), default) for name, default in _SEARCH.items()
            },
            "max_length": geometry.positions,
            "past_present_share_buffer": True,  # attention appends to the cache in place
        },
    }


def session_options(settings: SessionSettings) -> dict[str, Any]:
    """The options of one session as GenAI spells them."""
    return {
        "log_id": "onnxruntime-genai",
        "graph_optimization_level": _LEVELS[settings.level],
        "provider_options": [],
        **settings.entries,
    }


def special_tokens(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens that begin, end and fill up a text, as far as they are known."""
    eos = generation.get("eos_token_id")
    first = eos[0] if isinstance(eos, list) else eos
    tokens = {
        "bos_token_id": generation.get("bos_token_id"),
        "eos_token_id": eos,
        # a text that has ended is filled up with it, so that any token will do
        "pad_token_id": or_default(generation.get("pad_token_id"), first),
    }
    return {name: token for name, token in tokens.items() if token is not None}


def or_default(value: Any, default: Any) -> Any:
    """``value``, or ``default`` where nothing is said."""
    return default if value is None else value

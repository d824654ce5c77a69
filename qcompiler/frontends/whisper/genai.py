"""What ONNX Runtime GenAI wants beside the two graphs of a Whisper.

The decoder is ``model.onnx``, the encoder ``encoder/model.onnx``: an artifact in the artifact.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from qcompiler.frontends.decoder.genai import or_default, session_options, special_tokens
from qcompiler.frontends.opened import ENCODER, Companions
from qcompiler.frontends.whisper.geometry import Geometry
from qcompiler.runtime.settings import SessionSettings

__all__ = ["companions", "processor_files"]

_CONFIG, _PROCESSOR = "genai_config.json", "audio_processor_config.json"
# What transformers reads of a processor; GenAI reads none of it.
_COPIED = (
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "normalizer.json",
)
_SECONDS, _FFT, _HOP = 30, 400, 160  # of all published models, at 16 kHz
_SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 1.0,
}


def companions(
    geometry: Geometry, generation: Mapping[str, Any], files: Mapping[str, bytes]
) -> Companions:
    """The files beside the decoder, once the session options of both graphs are known.

    Args:
        geometry: Of both parts.
        generation: Special tokens and search defaults, by transformers' names.
        files: Files of the tokenizer and the processor, by name.
    """

    def made(
        settings: SessionSettings, encoder: SessionSettings | None = None
    ) -> Mapping[str, bytes]:
        config = _config(geometry, generation, settings, encoder or SessionSettings())
        return {_CONFIG: _json(config), _PROCESSOR: _json(_processor(geometry)), **files}

    return made


def processor_files(folder: pathlib.Path) -> dict[str, bytes]:
    """The processor's files that lie in a folder."""
    paths = (folder / name for name in _COPIED)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=1) + "\n").encode()


def _processor(geometry: Geometry) -> dict[str, Any]:
    """Sound file to log-mel spectrogram, in the operations of onnxruntime-extensions."""
    frames = {"n_fft": _FFT, "hop_length": _HOP}
    steps: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("audio_decoder", "AudioDecoder", {}),
        ("STFT", "STFTNorm", {**frames, "frame_length": _FFT}),
        (
            "log_mel_spectrogram",
            "LogMelSpectrum",
            {**frames, "chunk_size": _SECONDS, "n_mel": geometry.mels},
        ),
    )
    sequence = [
        {"operation": {"name": name, "type": kind, **({"attrs": attrs} if attrs else {})}}
        for name, kind, attrs in steps
    ]
    return {"feature_extraction": {"sequence": sequence}}


def _config(
    geometry: Geometry,
    generation: Mapping[str, Any],
    decoder: SessionSettings,
    encoder: SessionSettings,
) -> dict[str, Any]:
    parts = {
        name: {
            "filename": filename,
            "session_options": session_options(settings),
            "hidden_size": geometry.width,
            "head_size": geometry.width // part.heads,
            "num_attention_heads": part.heads,
            "num_key_value_heads": part.heads,
            "num_hidden_layers": part.layers,
            **names,
        }
        for name, filename, settings, part, names in (
            ("encoder", f"{ENCODER}/model.onnx", encoder, geometry.encoder, _ENCODER_NAMES),
            ("decoder", "model.onnx", decoder, geometry.decoder, _DECODER_NAMES),
        )
    }
    return {
        "model": {
            **special_tokens(generation),
            "type": "whisper",
            "vocab_size": geometry.vocabulary,
            "context_length": geometry.decoder.positions,
            **parts,
        },
        "search": {
            **{
                name: or_default(generation.get(name), default) for name, default in _SEARCH.items()
            },
            "max_length": geometry.decoder.positions,
            # the graph reads from the cache's length where the tokens stand
            "past_present_share_buffer": False,
        },
    }


_ENCODER_NAMES: Mapping[str, Any] = {
    "inputs": {"audio_features": "audio_features"},
    "outputs": {
        "encoder_hidden_states": "encoder_hidden_states",
        "cross_present_key_names": "present_key_cross_%d",
        "cross_present_value_names": "present_value_cross_%d",
    },
}
_DECODER_NAMES: Mapping[str, Any] = {
    "inputs": {
        "input_ids": "input_ids",
        "past_key_names": "past_key_self_%d",
        "past_value_names": "past_value_self_%d",
        "cross_past_key_names": "past_key_cross_%d",
        "cross_past_value_names": "past_value_cross_%d",
    },
    "outputs": {
        "logits": "logits",
        "present_key_names": "present_key_self_%d",
        "present_value_names": "present_value_self_%d",
    },
}

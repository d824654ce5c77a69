"""Whisper tiny.en as torch modules, from the variables of a CTranslate2 model.

Imports torch and transformers: import it where they are needed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from qcompiler_models.assets import AssetError
from qcompiler_models.real import Array

__all__ = ["Decoder", "build", "save_folder", "state_dict", "tiny_en"]

_LINEAR: Final = ("weight", "bias")
_NORM: Final = {"gamma": "weight", "beta": "bias"}


def tiny_en() -> WhisperConfig:
    """The published sizes of tiny.en."""
    return WhisperConfig(
        vocab_size=51864,
        num_mel_bins=80,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        max_source_positions=1500,
        max_target_positions=448,
        use_cache=False,
    )


def build(variables: Mapping[str, Array], config: WhisperConfig) -> WhisperForConditionalGeneration:
    """The model in float32 and evaluation mode.

    Args:
        variables: Of a ``WhisperSpec``, by name.
        config: Sizes; they must be those of the variables.

    Raises:
        AssetError: If a variable is missing or of another shape.
    """
    model = WhisperForConditionalGeneration(config)
    states = {name: torch.from_numpy(x) for name, x in state_dict(variables, config).items()}
    try:
        model.load_state_dict(states, strict=False)
    except RuntimeError as error:
        raise AssetError(f"the variables do not fit the model: {error}") from error
    missing = model.state_dict().keys() - states.keys() - {"proj_out.weight"}
    if missing:
        raise AssetError(f"the variables do not give {sorted(missing)}")
    model.tie_weights()
    model.requires_grad_(False)
    return model.eval()


def save_folder(
    model: WhisperForConditionalGeneration,
    tokenizer_file: pathlib.Path,
    said: Mapping[str, Any],
    target: pathlib.Path,
) -> None:
    """Write what transformers loads: model, tokenizer, processor and what is never said.

    Args:
        model: What :func:`build` made.
        tokenizer_file: ``tokenizer.json``.
        said: ``config.json`` of the CTranslate2 model.
        target: A new folder.
    """
    model.generation_config.update(
        suppress_tokens=said["suppress_ids"],
        begin_suppress_tokens=said["suppress_ids_begin"],
        is_multilingual=False,
        use_cache=True,
    )
    model.config.use_cache = True
    model.save_pretrained(target)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    end = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.add_special_tokens({"eos_token": end, "pad_token": end, "bos_token": end})
    tokenizer.save_pretrained(target)
    WhisperFeatureExtractor().save_pretrained(target)


def state_dict(variables: Mapping[str, Array], config: WhisperConfig) -> dict[str, Array]:
    """The variables of a ``WhisperSpec`` under the names that transformers gives them, float32.

    CTranslate2 keeps query, key and value of one input as one layer, ``linear_0`` of
    ``self_attention``; of the attention to the encoder, key and value as ``linear_1``. The key has
    no bias in Whisper: its third of the fused one is zeros, which is checked.

    Raises:
        AssetError: If a variable is missing, or a key has a bias.
    """
    states: dict[str, Array] = {}
    try:
        for name, value in _named(variables, config):
            states[name] = value.astype(np.float32)
    except KeyError as error:
        raise AssetError(f"the model has no variable {error}; wanted those of Whisper") from error
    for name in [name for name in states if name.endswith("k_proj.bias")]:
        if states.pop(name).any():
            raise AssetError(f"{name} is not zero: this is no Whisper")
    return states


def _named(variables: Mapping[str, Array], config: WhisperConfig) -> Iterator[tuple[str, Array]]:
    for part, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        to = f"model.{part}"
        yield f"{to}.embed_positions.weight", variables[f"{part}/position_encodings/encodings"]
        yield from _norm(variables, f"{part}/layer_norm", f"{to}.layer_norm")
        for i in range(layers):
            yield from _layer(variables, f"{part}/layer_{i}", f"{to}.layers.{i}", part)
    for conv in ("conv1", "conv2"):
        for kind in _LINEAR:
            yield f"model.encoder.{conv}.{kind}", variables[f"encoder/{conv}/{kind}"]
    yield "model.decoder.embed_tokens.weight", variables["decoder/embeddings/weight"]


def _layer(
    variables: Mapping[str, Array], source: str, to: str, part: str
) -> Iterator[tuple[str, Array]]:
    own, across = f"{source}/self_attention", f"{source}/attention"
    yield from _split(variables, f"{own}/linear_0", f"{to}.self_attn", ("q", "k", "v"))
    yield from _split(variables, f"{own}/linear_1", f"{to}.self_attn", ("out",))
    yield from _norm(variables, f"{own}/layer_norm", f"{to}.self_attn_layer_norm")
    if part == "decoder":
        yield from _split(variables, f"{across}/linear_0", f"{to}.encoder_attn", ("q",))
        yield from _split(variables, f"{across}/linear_1", f"{to}.encoder_attn", ("k", "v"))
        yield from _split(variables, f"{across}/linear_2", f"{to}.encoder_attn", ("out",))
        yield from _norm(variables, f"{across}/layer_norm", f"{to}.encoder_attn_layer_norm")
    for kind in _LINEAR:
        yield f"{to}.fc1.{kind}", variables[f"{source}/ffn/linear_0/{kind}"]
        yield f"{to}.fc2.{kind}", variables[f"{source}/ffn/linear_1/{kind}"]
    yield from _norm(variables, f"{source}/ffn/layer_norm", f"{to}.final_layer_norm")


def _split(
    variables: Mapping[str, Array], source: str, to: str, parts: tuple[str, ...]
) -> Iterator[tuple[str, Array]]:
    """Equal shares of the rows of a linear layer, a projection each."""
    for kind in _LINEAR:
        fused = variables[f"{source}/{kind}"]
        if len(fused) % len(parts):
            raise AssetError(f"{source}/{kind} has {len(fused)} rows, not a multiple of {parts}")
        for part, share in zip(parts, np.split(fused, len(parts)), strict=True):
            yield f"{to}.{part}_proj.{kind}", share


def _norm(variables: Mapping[str, Array], source: str, to: str) -> Iterator[tuple[str, Array]]:
    for name, kind in _NORM.items():
        yield f"{to}.{kind}", variables[f"{source}/{name}"]


class Decoder(nn.Module):  # type: ignore[misc]
    """Tokens and encoder states to logits, without a cache."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.model.decoder
        self.proj_out = model.proj_out

    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens]`` and ``[batch, frames, width]`` to ``[batch, tokens, vocabulary]``."""
        hidden = self.decoder(
            input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False
        ).last_hidden_state
        logits: torch.Tensor = self.proj_out(hidden)
        return logits

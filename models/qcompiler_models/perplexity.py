"""Perplexity of a language model on tokens, and the feeds of a decoder with a key-value cache."""

from __future__ import annotations

import dataclasses

import numpy as np

from qcompiler_models.real import Array, Feed, Run

__all__ = ["Scored", "divergence", "feed", "score", "windows"]


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
    found = _log_shares(run, given)
    chosen = np.take_along_axis(found, given["input_ids"][:, 1:, None], axis=-1)[..., 0]
    return Scored(-chosen, found.argmax(axis=-1))


def divergence(run: Run, reference: Run, given: Feed) -> float:
    """Kullback-Leibler divergence from the reference's next tokens to the model's, mean nats.

    It looks at all tokens and not only at the true ones, so chance moves it less than perplexity.
    """
    wanted, found = _log_shares(reference, given), _log_shares(run, given)
    return float((np.exp(wanted) * (wanted - found)).sum(axis=-1, dtype=np.float64).mean())


def _log_shares(run: Run, given: Feed) -> Array:
    """Logarithms of the likelihood of each token in each place but the last."""
    logits: Array = np.asarray(run(given)["logits"])[:, :-1].astype(np.float32)
    logits -= logits.max(axis=-1, keepdims=True)
    total = np.exp(logits).sum(axis=-1, dtype=np.float64, keepdims=True)
    return np.asarray(logits - np.log(total), np.float32)

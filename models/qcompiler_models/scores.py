"""Measures of agreement: arrays or strings in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "character_accuracy",
    "cosines",
    "edit_distance",
    "kl_divergence",
    "recall_at_1",
    "sqnr_db",
]

_Floats = npt.NDArray[np.floating]


def cosines(a: _Floats, b: _Floats) -> npt.NDArray[np.float64]:
    """Cosine of each row of ``a`` with the same row of ``b``; both ``[rows, width]``."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = (left * right).sum(axis=1)
    return np.asarray(products / np.maximum(norms, 1e-12), np.float64)


def recall_at_1(queries: _Floats, documents: _Floats) -> float:
    """Share of queries whose nearest document by cosine is the one of the same row."""
    left = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    right = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    nearest = (left @ right.T).argmax(axis=1)
    return float((nearest == np.arange(len(left))).mean())


def sqnr_db(reference: _Floats, found: _Floats) -> float:
    """Signal power over error power in decibels: ``10 log10(sum(r^2) / sum((r - f)^2))``.

    At most 200, so that equal arrays give a number that JSON can hold; float32 ends near 150.
    """
    signal = reference.astype(np.float64)
    power = float((signal**2).sum())
    noise = float(((signal - found) ** 2).sum())
    return float(10 * np.log10(power / max(noise, power * 1e-20, 1e-300)))


def kl_divergence(reference: _Floats, found: _Floats) -> float:
    """Mean over rows of KL(softmax(reference) || softmax(found)), in nats; logits ``[rows, n]``."""
    p, q = _log_softmax(reference), _log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: _Floats) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(shifted - logs, np.float64)


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Least number of insertions, deletions and substitutions that make ``b`` of ``a``.

    Of characters when they are strings, of words when they are lists of them.
    """
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
            diagonal, row[j] = row[j], cost
    return row[-1]


def character_accuracy(truths: Sequence[str], found: Sequence[str]) -> float:
    """One minus the edits needed over the characters there are, at least 0."""
    pairs = zip(truths, found, strict=True)
    edits = sum(edit_distance(truth, text) for truth, text in pairs)
    return max(0.0, 1 - edits / sum(map(len, truths)))

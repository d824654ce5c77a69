"""A transformer of four equal layers, to learn block by block, and how far an artifact is off."""

from __future__ import annotations

import functools

import numpy as np

from qcompiler import Artifact, qcompile
from qcompiler_models import tiny

FEEDS = tiny.feeds("transformer", 6)


def error_of(artifact: Artifact) -> float:
    """Sum of squares over all outputs, on the feeds that were learned on."""
    pairs = zip(map(artifact.run, FEEDS), _float_outputs(), strict=True)
    return sum(float(np.square(a[k] - b[k]).sum()) for a, b in pairs for k in b)


@functools.cache
def _float_outputs() -> list[dict[str, np.ndarray]]:
    plain = qcompile(tiny.transformer(layers=4), "cpu-vnni", "float")
    return [dict(plain.run(feed)) for feed in FEEDS]

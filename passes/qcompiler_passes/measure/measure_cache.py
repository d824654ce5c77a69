"""Measure how large the keys and values are that a decoder keeps of earlier tokens."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, QcError
from qcompiler.pipeline.contract import Feed, Pass, PassResult, Phase, State
from qcompiler.runtime.kv_cache import Cache, attention_caches
from qcompiler.runtime.session import open_session, run

__all__ = ["MeasureCache"]

_FEEDS = 16  # of the calibration data; each is a run of the float model
_KEY = "kv_cache"


@dataclasses.dataclass(frozen=True)
class MeasureCache(Pass):
    """Find the scales of a cache in int8, where the recipe has ``kv_cache``.

    The largest number of each channel of each head, or of all, over some of the calibration data
    is stored as 127; padding does not count. Keys are stored behind the rotary embedding, which
    turns pairs of channels by an angle that grows with the position: the length of a pair counts
    for both, so that a scale holds at positions that no sample reached.
    """

    name: ClassVar[str] = "measure-cache"
    phase: ClassVar[Phase] = Phase.MEASURE

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.cache_scales``; the model is untouched.

        Raises:
            QcError: QC405 the target's attention has no such cache; QC410 there is no data; QC411
                the model has no cache, or the data begin behind a past.
        """
        asked = state.recipe.kv_cache
        if asked is None:
            return PassResult(modified=False)
        known = [row.id for row in state.target.caches]
        if asked not in known:
            raise QcError(
                Code.TARGET_CANNOT,
                _KEY,
                f"{state.target.name} has no attention with a cache of {asked}; it has"
                f" {', '.join(known) or 'none but float'}",
                "leave kv_cache out of the recipe, or choose a CPU target of ONNX Runtime",
            )
        caches = attention_caches(model.graph)
        if not caches:
            raise QcError(
                Code.USAGE,
                _KEY,
                "wants a decoder whose keys and values go through GroupQueryAttention, from an"
                " input of the model to an output",
                "leave kv_cache out of the recipe",
            )
        if state.feeds is None:
            raise QcError(
                Code.NEEDS_CALIBRATION,
                _KEY,
                "an int8 cache has calibrated scales, and there is no data",
                "give calibration data, or let the model write texts (text.own_samples)",
            )
        padding = Padding.of(model, state.recipe.calibration.mask)
        feeds = itertools.islice(state.feeds, _FEEDS)
        largest = _largest(model, caches, feeds, padding)
        state.cache_scales = {
            name: _scale(found, per_channel=asked == "int8-channel")
            for name, found in largest.items()
        }
        return PassResult(modified=False)


def _largest(
    model: ir.Model, caches: Sequence[Cache], feeds: itertools.islice[Feed], padding: Padding
) -> dict[str, npt.NDArray[np.float32]]:
    """Largest magnitude by name of the output, ``[1, heads, 1, width]``."""
    largest = {
        str(cache.present.name): np.zeros((1, cache.heads, 1, cache.width), np.float32)
        for cache in caches
    }
    rotated = {str(cache.present.name): cache.rotated for cache in caches}
    session = open_session(model, code=Code.FLOAT_MODEL_FAILS)
    for feed in feeds:
        if any(feed[str(cache.past.name)].size for cache in caches):
            raise QcError(
                Code.USAGE,
                _KEY,
                "the calibration data begin behind a past, which has no int8 numbers yet",
                "give whole texts: their past has length 0",
            )
        keep = padding.keep(feed)
        for name, found in run(session, feed, list(largest)).items():
            if not np.isfinite(found).all():
                raise QcError(
                    Code.NOT_FINITE, name, "the float model's cache is not finite", "mend the model"
                )
            sizes = _lengths(found, rotated[name])
            if keep is not None:
                sizes *= keep[:, None, :, None]
            np.maximum(largest[name], sizes.max(axis=(0, 2), keepdims=True), out=largest[name])
    return largest


def _lengths(x: npt.NDArray[np.float32], rotated: int) -> npt.NDArray[np.float32]:
    """Magnitudes; of the first ``rotated`` channels, where ``i`` is turned with ``i + half``."""
    sizes = np.abs(x)
    half = rotated // 2
    if half:
        first, second = sizes[..., :half], sizes[..., half:rotated]
        sizes[..., :half] = sizes[..., half:rotated] = np.hypot(first, second)
    return sizes


def _scale(largest: npt.NDArray[np.float32], *, per_channel: bool) -> npt.NDArray[np.float32]:
    found = largest if per_channel else largest.max(keepdims=True).reshape(1)
    return (np.maximum(found, 1e-6) / 127).astype(np.float32)

"""Check that attention keeps keys and values as a target's row says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.runtime.kv_cache import KEY_SCALE, VALUE_SCALE
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.probe_layers import Array, model_of
from qcompiler.targets.probe_timing import compute
from qcompiler.targets.schema import CacheType

__all__ = ["probe_cache"]

_HEADS, _KV_HEADS, _WIDTH = 4, 2, 16
_BATCH, _PAST = 2, 5
_TOLERANCE = 1e-4  # the kernel multiplies with floats; rounding to 8 bits is in both


def probe_cache(row: CacheType) -> tuple[bool, str, float]:
    """Whether one more token behind a stored past gets what numpy computes.

    Returns:
        Whether it does, what was seen, and the largest error as a share of the largest value.
    """
    rng = np.random.default_rng(7)
    q = rng.normal(0, 1, (_BATCH, 1, _HEADS * _WIDTH)).astype(np.float32)
    k, v = (rng.normal(0, 1, (_BATCH, 1, _KV_HEADS * _WIDTH)).astype(np.float32) for _ in range(2))
    stored = (_BATCH, _KV_HEADS, _PAST, _WIDTH)
    keys, values = (rng.integers(-127, 128, stored).astype(np.int8) for _ in range(2))
    by_channel = row.id == "int8-channel"
    shape = (1, _KV_HEADS, 1, _WIDTH) if by_channel else (1,)
    scales = [rng.uniform(0.01, 0.03, shape).astype(np.float32) for _ in range(2)]
    kind = "PER_CHANNEL" if by_channel else "PER_TENSOR"

    def build(tape: Tape, given: Mapping[str, ir.Value]) -> ir.Value:
        inputs: list[Any] = [given[name] for name in ("q", "k", "v", "keys", "values")]
        inputs += [np.full(_BATCH, _PAST, np.int32), np.asarray(_PAST + 1, np.int32)]
        inputs += [None] * (VALUE_SCALE + 1 - len(inputs))
        inputs[KEY_SCALE], inputs[VALUE_SCALE] = scales
        out, _, _ = tape.op(
            "GroupQueryAttention",
            *inputs,
            domain=row.op.partition(":")[0],
            outputs=3,
            num_heads=_HEADS,
            kv_num_heads=_KV_HEADS,
            k_quant_type=kind,
            v_quant_type=kind,
            kv_cache_bit_width=8,
        )
        return out  # type: ignore[no-any-return]

    feed: dict[str, Array] = {"q": q, "k": k, "v": v, "keys": keys, "values": values}
    found = compute(model_of([build], feed), feed, SessionSettings("disable"))[0]
    expected = _attention(q, _appended(keys, k, scales[0]), _appended(values, v, scales[1]))
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    return error <= _TOLERANCE, f"runs as {row.op}, off by {error:.1e}", error


def _appended(stored: Array, new: Array, scale: Array) -> Array:
    """Keys or values of all tokens, the new ones rounded too, ``[batch, heads, all, width]``."""
    by_head = new.reshape(_BATCH, 1, _KV_HEADS, _WIDTH).transpose(0, 2, 1, 3)
    rounded = np.clip(np.rint(by_head / scale), -128, 127)
    return np.concatenate([stored * scale, rounded * scale], axis=2)


def _attention(q: Array, keys: Array, values: Array) -> Array:
    by_head = q.reshape(_BATCH, _KV_HEADS, _HEADS // _KV_HEADS, _WIDTH)
    scores = np.einsum("bghd,bgtd->bght", by_head, keys) / np.sqrt(_WIDTH)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed: Array = np.einsum("bght,bgtd->bghd", shares, values)
    return mixed.reshape(_BATCH, 1, _HEADS * _WIDTH)

"""Attention, and the rotation of its queries and keys."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from qcompiler.lift.operands import Table, torch_dtype

__all__ = ["OPERATORS"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: Literal[1, 2, 3] = 1,
) -> Tensor | tuple[Tensor, ...]:
    """``softmax(q k^T scale + mask) v`` for heads ``[b, h, s, d]``, or packed ``[b, s, h d]``.

    A key head may serve several query heads. A row that may attend to nothing gives zeros.
    """
    packed = q.ndim == 3
    if packed:
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present, share = (k, v), q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    root = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = (q * root) @ (k * root).mT  # both sides, as ONNX defines it
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    bias = _bias(attn_mask, scores, is_causal, past_key.shape[2] if past_key is not None else 0)
    precision = torch_dtype(softmax_precision) if softmax_precision else scores.dtype
    y = _softmax(scores, bias, precision).to(v.dtype) @ v
    y = y.transpose(1, 2).flatten(2) if packed else y
    return y if outputs == 1 else (y, *present)[:outputs]


def _heads(x: Tensor, count: int | None) -> Tensor:
    assert count is not None, "packed operands need the number of heads"
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _bias(mask: Tensor | None, scores: Tensor, is_causal: int, past: int) -> Tensor | None:
    """What is added to the scores; keys that a short mask does not name are masked."""
    blocked = torch.tensor(float("-inf"), dtype=scores.dtype, device=scores.device)
    bias = None
    if mask is not None:
        bias = torch.where(mask, 0.0, blocked) if mask.dtype is torch.bool else mask
        missing = scores.shape[-1] - bias.shape[-1]
        bias = torch.nn.functional.pad(bias, [0, missing], value=float("-inf"))
    if is_causal:
        rows, columns = scores.shape[-2:]
        seen = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(past)
        causal = torch.where(seen, 0.0, blocked)
        bias = causal if bias is None else bias + causal
    return bias


def _softmax(scores: Tensor, bias: Tensor | None, precision: torch.dtype) -> Tensor:
    if bias is None:
        return torch.softmax(scores.to(precision), -1)
    # A row of -inf has no softmax, and would turn gradients into NaN: it is freed, then cleared.
    empty = torch.isneginf(bias).all(-1, keepdim=True)
    shares = torch.softmax((scores + bias.masked_fill(empty, 0.0)).to(precision), -1)
    return shares.masked_fill(empty, 0.0)


def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of the first elements of each head by angles of the position."""
    heads = x.transpose(1, 2) if x.ndim == 4 else x.reshape(*x.shape[:2], num_heads, -1)
    width = rotary_embedding_dim or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    cos, sin = cos_cache.unsqueeze(2), sin_cache.unsqueeze(2)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2) if x.ndim == 4 else y.reshape(x.shape)


OPERATORS: Table = {
    ("", "Attention", 23): attention,
    ("", "RotaryEmbedding", 23): rotary_embedding,
}

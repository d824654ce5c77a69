"""Attention, and the rotation of its queries and keys."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.lift.operands import Table, torch_dtype

__all__ = ["OPERATORS"]

_SHORT = 512  # rows, to which the scores of all heads are held at once
_PIECE = 128  # of them: shorter ones spare more of what is masked, longer ones are better products


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
    past = past_key.shape[2] if past_key is not None else 0
    plain = is_causal and attn_mask is None and not (softcap or softmax_precision)
    if plain and not past and q.shape[2] == k.shape[2]:
        y = _causal(q, k, v, scale)
    else:
        if share > 1:
            k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        bias = _bias(attn_mask, q, k, is_causal, past)
        if softcap or softmax_precision:
            y = _capped(q, k, v, bias, scale, softcap, softmax_precision)
        else:
            bias, empty = _freed(bias)
            y = functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
            y = y if empty is None else y.masked_fill(empty, 0.0)
    y = y.transpose(1, 2).flatten(2) if packed else y
    return y if outputs == 1 else (y, *present)[:outputs]


def _capped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float | None,
    softcap: float,
    precision: int | None,
) -> Tensor:
    """Attention whose scores are capped, or whose softmax has a type of its own."""
    root = math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = (q * root) @ (k * root).mT  # both sides, as ONNX defines it
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    dtype = torch_dtype(precision) if precision else scores.dtype
    return _softmax(scores, bias, dtype).to(v.dtype) @ v


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Causal attention without a past; short ones by products, for which nothing is tiled.

    Rows come in pieces, each with the keys up to its last row; the query heads that a key head
    serves are rows of one product.
    """
    heads, share = k.shape[1], q.shape[1] // k.shape[1]
    if q.shape[2] > _SHORT or q.is_cuda:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rows = (q * scale).unflatten(1, (heads, share)).flatten(0, 1)
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    found = []
    for start in range(0, max(q.shape[2], 1), _PIECE):
        piece = rows[:, :, start : start + _PIECE]
        count = piece.shape[2]
        end = start + count
        blocked = torch.full((count, end), float("-inf"), dtype=q.dtype, device=q.device)
        bias = blocked.triu(1 + start).repeat(share, 1)
        scores = torch.baddbmm(bias, piece.flatten(1, 2), keys[:, :end].mT)
        y = torch.softmax(scores, -1) @ values[:, :end]
        found.append(y.unflatten(1, (share, count)))
    return torch.cat(found, 2).unflatten(0, (len(q), heads)).flatten(1, 2)


def _heads(x: Tensor, count: int | None) -> Tensor:
    assert count is not None, "packed operands need the number of heads"
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _bias(mask: Tensor | None, q: Tensor, k: Tensor, is_causal: int, past: int) -> Tensor | None:
    """What is added to the scores; keys that a short mask does not name are masked."""
    blocked = torch.tensor(float("-inf"), dtype=q.dtype, device=q.device)
    rows, columns = q.shape[2], k.shape[2]
    bias = None
    if mask is not None:
        bias = torch.where(mask, 0.0, blocked) if mask.dtype is torch.bool else mask
        bias = functional.pad(bias, [0, columns - bias.shape[-1]], value=float("-inf"))
    if is_causal:
        seen = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(past)
        causal = torch.where(seen, 0.0, blocked)
        bias = causal if bias is None else bias + causal
    return bias


def _freed(bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The bias without rows of -inf, and which those were, ``[..., rows, 1]``.

    Such a row has no softmax, and would turn gradients into NaN: it is freed, then cleared.
    """
    if bias is None:
        return None, None
    empty = torch.isneginf(bias).all(-1, keepdim=True)
    return bias.masked_fill(empty, 0.0), empty


def _softmax(scores: Tensor, bias: Tensor | None, precision: torch.dtype) -> Tensor:
    bias, empty = _freed(bias)
    if bias is None or empty is None:
        return torch.softmax(scores.to(precision), -1)
    return torch.softmax((scores + bias).to(precision), -1).masked_fill(empty, 0.0)


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
    cos, sin = (cache.unsqueeze(2).to(x.dtype) for cache in (cos_cache, sin_cache))
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([turned, rest], -1) if rest.shape[-1] else turned
    return y.transpose(1, 2) if x.ndim == 4 else y.reshape(x.shape)


def group_query_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    total_sequence_length: Tensor | None = None,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    softcap: float = 0.0,
    kv_cache_bit_width: Literal[0] = 0,
    smooth_softmax: Literal[0] = 0,
    outputs: Literal[1, 2, 3] = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Causal attention of packed heads ``[b, s, h d]`` behind a cache ``[b, h, p, d]``.

    All sequences of a batch have the same past: ``seqlens_k``, which tells where right padding
    begins, changes only rows that are padding themselves.
    """
    if key is None or value is None:
        width = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        sizes = [num_heads * width, kv_num_heads * width, kv_num_heads * width]
        query, key, value = query.split(sizes, -1)
    past = 0 if past_key is None else past_key.shape[2]
    q, k, v = _heads(query, num_heads), _heads(key, kv_num_heads), _heads(value, kv_num_heads)
    rows = torch.arange(past, past + q.shape[2], device=q.device)
    if do_rotary:
        assert cos_cache is not None
        assert sin_cache is not None
        turn = {"interleaved": rotary_interleaved, "rotary_embedding_dim": 2 * cos_cache.shape[-1]}
        positions = rows.expand(q.shape[0], -1)
        q = rotary_embedding(q, cos_cache, sin_cache, positions, **turn)
        k = rotary_embedding(k, cos_cache, sin_cache, positions, **turn)
    seen = None
    if local_window_size > 0:
        columns = torch.arange(past + q.shape[2], device=q.device)
        seen = columns > rows[:, None] - local_window_size
    y, *present = attention(
        q, k, v, seen, past_key, past_value,
        is_causal=1, scale=scale or None, softcap=softcap, outputs=3,
    )  # fmt: skip
    y = y.transpose(1, 2).flatten(2)
    return y if outputs == 1 else (y, *present)[:outputs]


OPERATORS: Table = {
    ("com.microsoft", "GroupQueryAttention", 1): group_query_attention,
    ("", "Attention", 23): attention,
    ("", "RotaryEmbedding", 23): rotary_embedding,
}

"""Matrix products and attention of the lifted form give the reference's results."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lifted_case import EXAMPLES, Case, agree


@given(st.data())
@EXAMPLES
def test_matmul(data: st.DataObject) -> None:
    case = Case(data.draw)
    batch = case.shape(0, 2)
    m, k, n = (case.integer(1, 4) for _ in range(3))
    a = case.floats(*case.broadcastable(batch), m, k)
    agree(case, "MatMul", [a, case.floats(*batch, k, n)])


@given(st.data())
@EXAMPLES
def test_gemm(data: st.DataObject) -> None:
    case = Case(data.draw)
    m, k, n = (case.integer(1, 4) for _ in range(3))
    transA, transB = case.flag(), case.flag()
    a, b = (
        case.floats(*((k, m) if transA else (m, k))),
        case.floats(*((n, k) if transB else (k, n))),
    )
    c = case.floats(*case.broadcastable((m, n))) if case.flag() else None
    factors = {"alpha": case.pick(1.0, 0.5), "beta": case.pick(1.0, 2.0)}
    agree(case, "Gemm", [a, b, c], {"transA": transA, "transB": transB, **factors})


@given(st.data())
@EXAMPLES
def test_einsum(data: st.DataObject) -> None:
    case = Case(data.draw)
    a, b = case.floats(2, 3, 4), case.floats(2, 4, 2)
    agree(
        case,
        "Einsum",
        [a, b],
        {"equation": case.pick("bij,bjk->bik", "bij,bjk->i", "bij,bjk->bki")},
    )


@given(st.data())
@settings(EXAMPLES, max_examples=80)
def test_attention(data: st.DataObject) -> None:
    case = Case(data.draw)
    b, kv, share, s, t, d = (case.integer(1, 3) for _ in range(6))
    h, past, packed = kv * share, case.integer(0, 2), case.flag()
    attributes: dict[str, Any] = {"is_causal": case.flag(), "softcap": case.pick(0.0, 2.0)}
    if case.flag():
        attributes["scale"] = 0.3
    if packed:
        attributes |= {"q_num_heads": h, "kv_num_heads": kv}
        q, k, v = case.floats(b, s, h * d), case.floats(b, t, kv * d), case.floats(b, t, kv * 2)
    else:
        q, k, v = case.floats(b, h, s, d), case.floats(b, kv, t, d), case.floats(b, kv, t, 2)
    mask: Any = None
    if case.flag():
        shape = case.pick((s, t + past), (b, 1, s, t + past), (1, h, s, t + past))
        mask = case.tied(*shape) > 0 if case.flag() else case.floats(*shape)
    before = [case.floats(b, kv, past, d), case.floats(b, kv, past, 2)] if past else []
    outputs = 3 if past else 1
    agree(case, "Attention", [q, k, v, mask, *before], attributes, outputs=outputs, data=9)


@given(st.data())
@EXAMPLES
def test_rotary_embedding(data: st.DataObject) -> None:
    case = Case(data.draw)
    b, h, s, d = 2, case.integer(1, 2), case.integer(1, 3), 4
    attributes: dict[str, Any] = {"interleaved": case.flag()}
    x = case.floats(b, h, s, d)
    if case.flag():
        x, attributes["num_heads"] = case.floats(b, s, h * d), h
    width = case.pick(4, 2)
    if width == 2:
        attributes["rotary_embedding_dim"] = 2
        attributes["num_heads"] = h
    if case.flag():
        caches = [case.floats(b, s, width // 2) for _ in range(2)]
        agree(case, "RotaryEmbedding", [x, *caches], attributes)
    else:
        caches = [case.floats(6, width // 2) for _ in range(2)]
        ids = case.rng.integers(0, 6, (b, s))
        agree(case, "RotaryEmbedding", [x, *caches, ids], attributes)

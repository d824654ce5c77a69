"""How exporters spell scaled-dot-product attention: terms to match, and what a match says.

Captures are named after what they belong to: ``q``, ``k`` and ``v``, the ``turned`` key, the
``scores``; behind a point stands what it is (``k.split_shape``, ``scores.times``).
"""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.patterns.match import Match
from qcompiler.patterns.terms import Call, Operators, Term, Var, one_of
from qcompiler_passes.float.attention_mask import Mask

__all__ = ["TO_HEADS", "attention", "heads_first", "mask_of", "scale_of"]

TO_HEADS = [0, 2, 1, 3]  # [batch, length, heads, size] <-> [batch, heads, length, size]


def _is_last(attr: ir.Attr | None) -> bool:
    return attr is None or attr.as_int() in (-1, 3)


def _scaled(op: Operators, x: Term, name: str) -> Term:
    """``x`` times or over a number, or as it is."""
    return one_of(
        op.Mul(x, Var(f"{name}.times")).may_be_shared(),
        op.Div(x, Var(f"{name}.over")).may_be_shared(),
        x,
    )


def _split(op: Operators, name: str) -> Call:
    """``[batch, length, heads * size]`` split into ``[batch, length, heads, size]``."""
    split = op.Reshape(Var(name), Var(f"{name}.split_shape"))
    return split.named(f"{name}.split").may_be_shared()


def heads_first(op: Operators, name: str) -> Call:
    """``[batch, length, heads * size]`` split into ``[batch, heads, length, size]``."""
    return op.Transpose(_split(op, name), perm=TO_HEADS).may_be_shared()


def _repeated(op: Operators, x: Term, name: str) -> Term:
    """Each head of ``x`` several times in a row (grouped queries), or ``x`` as it is."""
    wide = op.Unsqueeze(x, Var(f"{name}.repeat_axis")).named(f"{name}.one").may_be_shared()
    many = op.Expand(wide, Var(f"{name}.repeat_shape")).named(f"{name}.many").may_be_shared()
    flat = op.Reshape(many, Var(f"{name}.repeat_flat")).named(f"{name}.repeat").may_be_shared()
    return one_of(flat, x)


def _turned(op: Operators, k: Term, unturned: Term) -> Term:
    """``k`` [batch, heads, length, size] with its last axes exchanged.

    Either by one Transpose; or by Reshape, Transpose and Reshape over three axes, as torch's
    exporter does; or by one Transpose from ``unturned`` [batch, length, heads, size].
    """
    three = op.Reshape(k, Var("k.three_shape")).named("k.three").may_be_shared()
    swapped = op.Transpose(three, perm=[0, 2, 1]).may_be_shared()
    return one_of(
        op.Reshape(swapped, Var("k.four_shape")).named("k.four").may_be_shared(),
        op.Transpose(k, perm=[0, 1, 3, 2]).may_be_shared(),
        op.Transpose(unturned, perm=[0, 2, 3, 1]).named("k.turned").may_be_shared(),
    )


def attention(op: Operators, q: Term, k: Term, v: Term, unturned: Term | None = None) -> Call:
    """``softmax(scale * q @ k^T + mask) @ v`` with everything that may stand in between.

    Args:
        op: Makes the terms.
        q: Queries, ``[batch, heads, length, size]``.
        k: Keys, the same; some exporters turn them from ``unturned``.
        v: Values, the same.
        unturned: Keys, ``[batch, length, heads, size]``; the split of %k where None.
    """
    k = _scaled(op, _repeated(op, k, "k"), "k")
    turned = _scaled(op, _turned(op, k, unturned or _split(op, "k")), "turned")
    scores = _scaled(op, op.MatMul(_scaled(op, q, "q"), turned).named("scores"), "scores")
    filled = one_of(
        op.Where(Var("keep"), scores, Var("fill")),
        op.Where(Var("drop"), Var("fill"), scores),
        scores,
    )
    masked = one_of(
        op.Add(op.Add(filled, Var("mask")), Var("mask.second")),  # position bias and padding
        op.Add(filled, Var("mask")),
        filled,
    )
    weights = op.Softmax(masked, axis=_is_last)
    guarded = op.Where(op.IsNaN(weights), 0.0, weights)
    return op.MatMul(one_of(guarded, weights), _repeated(op, v, "v"))


def scale_of(m: Match) -> float | None:
    """The product of all factors between q, k and the scores; None when one is no number."""
    result = 1.0
    for name in ("q", "k", "turned", "scores"):
        for key in (f"{name}.times", f"{name}.over"):
            if key in m:
                number = m.scalar(key)
                if not number:
                    return None
                result = result * number if key.endswith("times") else result / number
    return result


def mask_of(m: Match) -> Mask | str | None:
    """The mask, None where there is none, or why it cannot be taken."""
    added = tuple(m[name] for name in ("mask", "mask.second") if name in m)
    if "keep" not in m and "drop" not in m:
        return Mask(added) if added else None
    fill = m.scalar("fill")
    if fill is None:
        return "what masked scores become is not a constant number"
    if "keep" in m:
        return Mask(added, m["keep"], fill, False)
    return Mask(added, m["drop"], fill, True)

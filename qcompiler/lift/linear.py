"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.lift.operands import Table

__all__ = ["OPERATORS"]


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """``alpha A B + beta C``."""
    y = (a.T if transA else a) @ (b.T if transB else b)
    y = y if alpha == 1.0 else alpha * y
    return y if c is None else y + (c if beta == 1.0 else beta * c)


def einsum(*xs: Tensor, equation: str) -> Tensor:
    """Sum of products by index letters."""
    return torch.einsum(equation, *xs)


def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """``alpha A B`` over the last two axes."""
    return alpha * ((a.mT if transA else a) @ (b.mT if transB else b))


OPERATORS: Table = {
    ("", "MatMul", 1): torch.matmul,
    ("", "Gemm", 7): gemm,
    ("", "Einsum", 12): einsum,
    ("com.microsoft", "FusedMatMul", 1): fused_matmul,
}

"""Operators of a runtime's own graph under the names of the operators they compute."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONVERSIONS", "family"]

CONVERSIONS = "quantize / dequantize"
_LAYOUT = "layout change"

_FAMILIES = {
    "Gemm": "MatMul",
    "GemmFloat8": "MatMul",
    "QGemm": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "MatMulNBits": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "TransposeMatMul": "MatMul",
    "ConvInteger": "Conv",
    "NhwcFusedConv": "Conv",
    "MultiHeadAttention": "Attention",
    "GroupQueryAttention": "Attention",
    "QAttention": "Attention",
    "SkipLayerNormalization": "LayerNormalization",
    "EmbedLayerNormalization": "LayerNormalization",
    "SimplifiedLayerNormalization": "RMSNormalization",
    "SkipSimplifiedLayerNormalization": "RMSNormalization",
    "BiasGelu": "Gelu",
    "FastGelu": "Gelu",
    "QuickGelu": "Gelu",
    "GatherBlockQuantized": "Gather",
    "QuantizeLinear": CONVERSIONS,
    "DequantizeLinear": CONVERSIONS,
    "DynamicQuantizeLinear": CONVERSIONS,
    "ReorderInput": _LAYOUT,
    "ReorderOutput": _LAYOUT,
}
_PREFIXES = ("QLinear", "Fused", "Nhwc")


def family(op: str) -> str:
    """The operator that ``op`` computes: ``QLinearConv`` and ``FusedConv`` are ``Conv``."""
    op = op.rsplit(":", 1)[-1]
    if op in _FAMILIES:
        return _FAMILIES[op]
    for prefix in _PREFIXES:
        if op.startswith(prefix) and len(op) > len(prefix):
            return family(op[len(prefix) :])
    return op


def by_family(times: Mapping[str, float]) -> dict[str, float]:
    """Sum a number per operator into one per :func:`family`, largest first."""
    sums: dict[str, float] = {}
    for op, number in times.items():
        sums[family(op)] = sums.get(family(op), 0.0) + number
    return dict(sorted(sums.items(), key=lambda item: -item[1]))

"""Operators of a runtime's own graph under the names of the operators they compute."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

__all__ = ["CONVERSIONS", "by_family", "by_planned", "family"]

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
# What layout transformers of ONNX Runtime 1.31 append to the name of a node they rewrite.
_RENAMED = re.compile(r"(_token_\d+|_nhwc|_nchwc)+$")


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


def by_planned(times: Mapping[str, float], planned: Container[str]) -> dict[str, float]:
    """Of microseconds by the runtime's node names those of planned nodes, under their own names."""
    found: dict[str, float] = {}
    for name, us in times.items():
        own = name if name in planned else _RENAMED.sub("", name)
        if own in planned:
            found[own] = round(found.get(own, 0.0) + us, 1)
    return found

"""One-operator models of the conversions between precisions and of common float operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.targets.probe_layers import Array, Build, quantize_by_row

__all__ = ["CONVERSIONS", "FLOAT_OPERATORS", "pointwise_case"]

_SCALE = np.asarray(0.03, np.float32)
_ZERO = np.asarray(128, np.uint8)


def _quantize(tape: Tape, values: Mapping[str, ir.Value]) -> Any:
    return tape.op("QuantizeLinear", values["x"], _SCALE, _ZERO)


def _dequantize(tape: Tape, values: Mapping[str, ir.Value]) -> Any:
    return tape.op("DequantizeLinear", values["q"], _SCALE, _ZERO)


def _dynamic(tape: Tape, values: Mapping[str, ir.Value]) -> Any:
    return tape.op("DynamicQuantizeLinear", values["x"], outputs=3)[0]


def _by_row(tape: Tape, values: Mapping[str, ir.Value]) -> Any:
    return quantize_by_row(tape, values["x"])[0]


CONVERSIONS: Mapping[str, Build] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "quantize-dynamic": _dynamic,
    "quantize-token": _by_row,
}


def _unary(op: str, **attributes: Any) -> Build:
    return lambda tape, values: tape.op(op, values["x"], **attributes)


def _normalize(op: str, *, bias: bool) -> Build:
    def build(tape: Tape, values: Mapping[str, ir.Value]) -> Any:
        shape = values["x"].shape
        assert shape is not None
        scale = np.ones(shape.numpy()[-1], np.float32)
        return tape.op(op, values["x"], scale, *([scale] if bias else []), axis=-1)

    return build


FLOAT_OPERATORS: Mapping[str, Build] = {
    "float.LayerNormalization": _normalize("LayerNormalization", bias=True),
    "float.RMSNormalization": _normalize("RMSNormalization", bias=False),
    "float.Softmax": _unary("Softmax", axis=-1),
    "float.Gelu": _unary("Gelu"),
    "float.Relu": _unary("Relu"),
    "float.Tanh": _unary("Tanh"),
    "float.HardSwish": _unary("HardSwish"),
    "float.Transpose": _unary("Transpose", perm=[1, 0]),
}


def pointwise_case(key: str, size: tuple[int, ...]) -> tuple[Build, Mapping[str, Array]]:
    """How to build the operator of a cost key, and its input of ``size``."""
    rng = np.random.default_rng(0)
    build: Callable[..., Any] = {**CONVERSIONS, **FLOAT_OPERATORS}[key]
    if key == "dequantize":
        return build, {"q": rng.integers(0, 256, size).astype(np.uint8)}
    return build, {"x": rng.normal(0, 1, size).astype(np.float32)}

"""Static integer operators of ONNX Runtime, spelled as DequantizeLinear, operator, QuantizeLinear.

Signatures: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant
from qcompiler_passes.quantized.spelling import Spelling

__all__ = ["QOPERATORS", "Spell", "attributes", "padded"]

# Writes a node in the dialect on a tape; a text says why it cannot.
Spell = Callable[[ir.Node, Tape], "Spelling | str"]

_FILTERS = 0  # axis of a convolution's output channels in its weight


def _conv(node: ir.Node, tape: Tape) -> Spelling | str:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    bias = node.inputs[8] if len(node.inputs) > 8 else None
    spelling = Spelling(node, tape)
    operands: list[ir.Value | None] = [
        spelling.dequantize(x, x_scale, x_zero),
        spelling.dequantize(w, w_scale, w_zero, axis=_FILTERS),
    ]
    if bias is not None:
        a, b = constant(x_scale), constant(w_scale)
        if a is None or b is None:
            return "its scales are not constant"
        steps = np.asarray(a.astype(np.float32).reshape(()) * b.astype(np.float32))
        operands.append(spelling.dequantize(bias, steps, None, axis=0))
    y = spelling.compute("Conv", *operands, **attributes(node))
    return spelling.quantize(y, y_scale, y_zero)


def _matmul(node: ir.Node, tape: Tape) -> Spelling | str:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    if not _scalar(a_scale):
        return "its activation has a scale per row"
    spelling = Spelling(node, tape)
    y = spelling.compute(
        "MatMul",
        spelling.dequantize(a, a_scale, a_zero),
        spelling.dequantize(b, b_scale, b_zero, axis=-1),
    )
    return spelling.quantize(y, y_scale, y_zero)


def _gemm(node: ir.Node, tape: Tape) -> Spelling | str:
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = padded(node, 9)
    attrs = attributes(node)
    if not _scalar(a_scale):
        return "its activation has a scale per row"
    columns = 0 if node.attributes.get_int("transB", 0) else 1
    spelling = Spelling(node, tape)
    operands: list[ir.Value | None] = [
        spelling.dequantize(a, a_scale, a_zero),
        spelling.dequantize(b, b_scale, b_zero, axis=columns),
    ]
    if c is not None:
        one, other = constant(a_scale), constant(b_scale)
        integers = constant(c)
        if one is None or other is None or integers is None:
            return "its scales or its bias are not constant"
        alpha = np.float32(node.attributes.get_float("alpha", 1.0))
        steps = alpha * one.astype(np.float32).reshape(()) * other.astype(np.float32).reshape(-1)
        if steps.size > 1 and integers.ndim != 1 and integers.shape[0] != 1:
            return "its bias is a matrix"
        flat = integers.reshape(-1) if steps.size > 1 else integers
        operands.append(spelling.dequantize(flat.astype(np.int32), steps, None, axis=0))
    y = spelling.compute("Gemm", *operands, **attrs)
    return spelling.quantize(y, y_scale, y_zero) if y_scale is not None else spelling.close(y)


def _binary(op_type: str) -> Spell:
    def spell(node: ir.Node, tape: Tape) -> Spelling | str:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = padded(node, 8)
        spelling = Spelling(node, tape)
        y = spelling.compute(
            op_type,
            spelling.dequantize(a, a_scale, a_zero),
            spelling.dequantize(b, b_scale, b_zero),
        )
        return spelling.quantize(y, y_scale, y_zero)

    return spell


def _unary(op_type: str, dropped: Sequence[str] = ()) -> Spell:
    def spell(node: ir.Node, tape: Tape) -> Spelling | str:
        if node.attributes.get_int("channels_last", 0):
            return "it reads channels last"
        x, x_scale, x_zero, y_scale, y_zero = padded(node, 5)
        spelling = Spelling(node, tape)
        kept = {k: v for k, v in attributes(node).items() if k not in ("channels_last", *dropped)}
        y = spelling.compute(op_type, spelling.dequantize(x, x_scale, x_zero), **kept)
        return spelling.quantize(y, y_scale, y_zero)

    return spell


def _softmax(node: ir.Node, tape: Tape) -> Spelling | str:
    if node.attributes.get_int("opset", 13) < 13 and node.attributes.get_int("axis", 1) != -1:
        return "it flattens to two dimensions, as Softmax did before opset 13"
    return _unary("Softmax", dropped=("opset",))(node, tape)


def _concat(node: ir.Node, tape: Tape) -> Spelling | str:
    spelling = Spelling(node, tape)
    parts = node.inputs[2:]
    operands = [
        spelling.dequantize(q, scale, zero_point)
        for q, scale, zero_point in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    y = spelling.compute("Concat", *operands, **attributes(node))
    return spelling.quantize(y, node.inputs[0], node.inputs[1])


def _where(node: ir.Node, tape: Tape) -> Spelling | str:
    condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero = node.inputs
    spelling = Spelling(node, tape)
    z = spelling.compute(
        "Where",
        condition,
        spelling.dequantize(x, x_scale, x_zero),
        spelling.dequantize(y, y_scale, y_zero),
    )
    return spelling.quantize(z, z_scale, z_zero)


QOPERATORS: Mapping[str, Spell] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "com.microsoft:QGemm": _gemm,
    "com.microsoft:QLinearAdd": _binary("Add"),
    "com.microsoft:QLinearMul": _binary("Mul"),
    "com.microsoft:QLinearSigmoid": _unary("Sigmoid"),
    "com.microsoft:QLinearLeakyRelu": _unary("LeakyRelu"),
    "com.microsoft:QLinearAveragePool": _unary("AveragePool"),
    "com.microsoft:QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "com.microsoft:QLinearSoftmax": _softmax,
    "com.microsoft:QLinearConcat": _concat,
    "com.microsoft:QLinearWhere": _where,
}


def attributes(node: ir.Node) -> dict[str, Any]:
    """The node's attributes, to be given to another node."""
    return {name: attr for name, attr in node.attributes.items() if isinstance(attr, ir.Attr)}


def padded(node: ir.Node, count: int) -> list[ir.Value | None]:
    """The node's inputs, with None for optional ones at the end that it leaves out."""
    return [*node.inputs, *(None,) * (count - len(node.inputs))]


def _scalar(value: ir.Value | None) -> bool:
    """Whether the value holds one number for all it is told of."""
    array = constant(value)
    if array is not None:
        return bool(array.size == 1)
    return value is not None and value.shape is not None and value.shape.rank() == 0

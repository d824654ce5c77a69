"""Operators that quantize at run time, or compute on integers without rounding the result."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant, has_one_use
from qcompiler.numerics.packing import integer_tensor, unpack_bits
from qcompiler_passes.quantized.qoperators import Spell, attributes, padded
from qcompiler_passes.quantized.spelling import Spelling

__all__ = ["PRODUCTS"]

_UNSIGNED = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_BLOCKS_SINCE = 21  # opset of DequantizeLinear's block_size and of 4-bit types
_TWO_BITS_SINCE = 25


def _integer_product(op_type: str, axis: int) -> Spell:
    """MatMulInteger or ConvInteger, Cast to float, Mul by the product of both scales."""

    def spell(node: ir.Node, tape: Tape) -> Spelling | str:
        a, b, a_zero, b_zero = padded(node, 4)
        chain = _scaled(node)
        if isinstance(chain, str):
            return chain
        cast, mul, a_scale, b_scale = chain
        spelling = Spelling(node, tape)
        y = spelling.compute(
            op_type,
            spelling.dequantize(a, a_scale, a_zero),
            spelling.dequantize(b, b_scale, b_zero, axis=axis),
            **attributes(node),
        )
        y.shape = mul.outputs[0].shape
        spelling.old = [node, cast, mul]
        return spelling.close(y)

    return spell


def _scaled(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Value, ir.Value] | str:
    """The Cast and the Mul behind an integer product, and the scales of its operands."""
    if not has_one_use(node.outputs[0]):
        return "its integers have several readers"
    cast = next(iter(node.outputs[0].uses())).node
    if cast.op_type != "Cast" or cast.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return "no Cast to float stands behind it"
    if not has_one_use(cast.outputs[0]):
        return "its integers have several readers"
    mul = next(iter(cast.outputs[0].uses())).node
    if mul.op_type != "Mul":
        return "no scale is multiplied to it"
    product = next((v for v in mul.inputs if v is not cast.outputs[0]), None)
    maker = None if product is None else product.producer()
    if maker is None or maker.op_type != "Mul":
        return "its scale is not a product of two scales"
    dynamic = node.inputs[0].producer() if node.inputs[0] is not None else None
    run_time = None
    if dynamic is not None and dynamic.op_type == "DynamicQuantizeLinear":
        run_time = dynamic.outputs[1]
    one, other = maker.inputs
    if one is not run_time:
        one, other = other, one
    if one is None or other is None or one is not run_time or constant(other) is None:
        return "its scales are not those of a DynamicQuantizeLinear and of a constant"
    return cast, mul, one, other


def _dynamic_quantize_matmul(node: ir.Node, tape: Tape) -> Spelling | str:
    a, b, b_scale, b_zero, bias = padded(node, 5)
    spelling = Spelling(node, tape)
    q, scale, zero = tape.op("DynamicQuantizeLinear", a, outputs=3)
    q.type, zero.type = ir.TensorType(ir.DataType.UINT8), ir.TensorType(ir.DataType.UINT8)
    scale.type = ir.TensorType(ir.DataType.FLOAT)
    q.shape = a.shape if a is not None else None
    return _with_bias(
        spelling,
        spelling.dequantize(q, scale, zero),
        spelling.dequantize(b, b_scale, b_zero, axis=-1),
        bias,
    )


def _matmul_integer_to_float(node: ir.Node, tape: Tape) -> Spelling | str:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = padded(node, 7)
    scales = constant(a_scale)
    source = a_scale.producer() if a_scale is not None else None
    whole = source is not None and source.op_type == "DynamicQuantizeLinear"
    if not whole and (scales is None or scales.size != 1):
        return "its activation has a scale per row"
    spelling = Spelling(node, tape)
    return _with_bias(
        spelling,
        spelling.dequantize(a, a_scale, a_zero),
        spelling.dequantize(b, b_scale, b_zero, axis=-1),
        bias,
    )


def _with_bias(spelling: Spelling, a: ir.Value, b: ir.Value, bias: ir.Value | None) -> Spelling:
    y = spelling.compute("MatMul", a, b)
    if bias is None:
        return spelling.close(y)
    shape, dtype = y.shape, y.type
    y = spelling.tape.op("Add", y, bias)
    y.shape, y.type = shape, dtype
    return spelling.close(y)


def _matmul_nbits(node: ir.Node, tape: Tape) -> Spelling | str:
    a, blob, scales, zeros, g_idx, bias = padded(node, 6)
    if g_idx is not None:
        return "its rows are permuted (g_idx)"
    k, n = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)
    bits = node.attributes.get_int("bits", 4)
    block = node.attributes.get_int("block_size", 0)
    opset = node.graph.opset_imports.get("", 0) if isinstance(node.graph, ir.Graph) else 0
    if bits not in _UNSIGNED or opset < _BLOCKS_SINCE or (bits == 2 and opset < _TWO_BITS_SINCE):
        return f"opset {opset} cannot dequantize blocks of {bits} bits"
    if node.attributes.get_int("accuracy_level", 0) not in (0, 4):
        return "its accuracy level asks for other arithmetic than the kernel has"
    data, scale = constant(blob), constant(scales)
    points = constant(zeros)
    if a is None or data is None or scale is None or (zeros is not None and points is None):
        return "its weight is not constant"
    if scale.dtype != np.float32:  # activations are of the same type, whether it is stated or not
        return "it is not float32"
    if points is not None and points.dtype != np.uint8:
        return "its zero points are floats"
    groups = -(-k // block)
    data = data.reshape(n, groups, -1)
    q = np.ascontiguousarray(unpack_bits(data, bits, block).reshape(n, groups * block)[:, :k].T)
    middle = np.full((groups, n), 1 << (bits - 1), np.uint8)
    if points is not None:
        middle = np.ascontiguousarray(unpack_bits(points.reshape(n, -1), bits, groups).T)
    dtype = _UNSIGNED[bits]
    spelling = Spelling(node, tape)
    graph = tape.graph
    name = blob.name if blob is not None else node.name
    dq = tape.op(
        "DequantizeLinear",
        add_initializer(graph, f"{name}/q", integer_tensor(q, dtype)),
        np.ascontiguousarray(scale.reshape(n, groups).T.astype(np.float32)),
        add_initializer(graph, f"{name}/zero_point", integer_tensor(middle, dtype)),
        axis=0,
        block_size=block,
    )
    dq.type, dq.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([k, n])
    return _with_bias(spelling, a, dq, bias)


PRODUCTS: Mapping[str, Spell] = {
    "MatMulInteger": _integer_product("MatMul", -1),
    "ConvInteger": _integer_product("Conv", 0),
    "com.microsoft:DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "com.microsoft:MatMulIntegerToFloat": _matmul_integer_to_float,
    "com.microsoft:MatMulNBits": _matmul_nbits,
}

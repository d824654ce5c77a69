"""Constants of a quantized graph: rounded where they are still float, laid out as kernels read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant, replace
from qcompiler.numerics.affine import quantize
from qcompiler.numerics.packing import integer_tensor
from qcompiler_passes.quantized.stored import Stored, dequantize_of, is_dequantize, is_quantize

__all__ = ["canonical_gemm", "round_constants", "standard_domain", "transpose_integers"]

_INTEGERS = frozenset(
    {
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
    }
)
_SINCE = {8: 13, 32: 13}  # opset from which the standard operators take a type; 21 for others


def standard_domain(node: ir.Node, opset: int) -> bool:
    """Let a Q or DQ of ``com.microsoft`` be the standard one, where the opset has its types."""
    if node.domain != "com.microsoft" or not (is_quantize(node) or is_dequantize(node)):
        return False
    stored = Stored.of(node)
    if stored is None or opset < _SINCE.get(stored.dtype.bitwidth, 21):
        return False
    node.domain = ""
    return True


def round_constants(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace Q of a float constant (fake quantization of a weight) by the integers it gives."""
    array = constant(node.inputs[0]) if is_quantize(node) else None
    stored = Stored.of(node) if array is not None else None
    if array is None or stored is None or stored.dtype not in _INTEGERS or array.dtype.kind != "f":
        return False
    if stored.block_size is not None or array.dtype != np.float32:
        return False
    shape = [1] * array.ndim
    if stored.axis is not None:
        shape[stored.axis] = -1
    limits = integer_limits(stored.dtype)
    q = quantize(array, stored.scale.reshape(shape), stored.zero_point.reshape(shape), *limits)
    assert node.inputs[0] is not None
    value = add_initializer(
        graph, f"{node.inputs[0].name}/q", integer_tensor(np.asarray(q), stored.dtype)
    )
    replace(graph, [node], [], {node.outputs[0]: value})
    return True


def integer_limits(dtype: ir.DataType) -> tuple[int, int]:
    """Smallest and largest number of an integer type of the graph."""
    bits = dtype.bitwidth
    return (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)
    )


def transpose_integers(graph: ir.Graph, node: ir.Node) -> bool:
    """Let Transpose of a dequantized constant transpose the integers instead, at compile time."""
    if node.op_type != "Transpose" or node.domain:
        return False
    dq = dequantize_of(node.inputs[0])
    q = None if dq is None else constant(dq.inputs[0])
    if dq is None or q is None:
        return False
    order = node.attributes.get_ints("perm", list(reversed(range(q.ndim))))
    tape = Tape(graph, node.name or "")
    result = dequantize_transposed(graph, tape, dq, list(order))
    if result is None:
        return False
    replace(graph, [node], tape.nodes, {node.outputs[0]: result})
    return True


def dequantize_transposed(
    graph: ir.Graph, tape: Tape, dq: ir.Node, order: list[int]
) -> ir.Value | None:
    """A DQ of the transposed integers of ``dq``; None when its parameters are not understood."""
    stored = Stored.of(dq)
    source = dq.inputs[0]
    q = constant(source)
    if stored is None or q is None or source is None or source.dtype is None:
        return None
    if stored.block_size is not None:
        return None
    axis = None if stored.axis is None else order.index(stored.axis)
    name = f"{source.name}/transposed"
    value = graph.initializers.get(name)
    wanted = tuple(q.shape[index] for index in order)
    if value is None or value.dtype is not source.dtype or tuple(value.shape or ()) != wanted:
        turned = np.ascontiguousarray(q.transpose(order))
        value = add_initializer(graph, name, integer_tensor(turned, source.dtype))
    result = tape.op("DequantizeLinear", value, *dq.inputs[1:], axis=axis)
    result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(wanted)
    return result  # type: ignore[no-any-return]


def canonical_gemm(graph: ir.Graph, node: ir.Node) -> bool:
    """Gemm with a dequantized constant weight becomes MatMul and Add, as in float graphs."""
    if node.op_type != "Gemm" or node.domain:
        return False
    dq = dequantize_of(node.inputs[1])
    transposed_input = node.attributes.get_int("transA", 0) == 1
    if dq is None or constant(dq.inputs[0]) is None or transposed_input:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if alpha != 1.0 or (bias is not None and beta != 1.0):
        return False
    tape = Tape(graph, node.name or "")
    weight: ir.Value | None = node.inputs[1]
    if node.attributes.get_int("transB", 0):
        weight = dequantize_transposed(graph, tape, dq, [1, 0])
        if weight is None:
            return False
    y = tape.op("MatMul", node.inputs[0], weight)
    matmul = tape.nodes[-1]
    y.type, y.shape = node.outputs[0].type, node.outputs[0].shape
    if bias is not None:
        y = tape.op("Add", y, bias)
    name = node.name
    replace(graph, [node], tape.nodes, {node.outputs[0]: y})
    if node.graph is None:
        matmul.name = name
    return True

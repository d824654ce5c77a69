"""The operators of ONNX Runtime's CPU provider that compute each kernel: a table by kernel id.

Signatures are those of the operator documentation
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant
from qcompiler_passes.apply.weight_functions import DOMAIN
from qcompiler_passes.lower.image_channels import in_fours
from qcompiler_passes.lower.qdq_sites import (
    Operand,
    Site,
    clamp_integers,
    is_redundant_clamp,
    refuse,
)
from qcompiler_passes.lower.weight_kernels import (
    dequantized_weight,
    float_zero_product,
    nbits_inputs,
)
from qcompiler_passes.planned import bias_operand

__all__ = ["LOWERINGS", "Lowered", "Lowering"]

_MICROSOFT = "com.microsoft"

# accuracy_level 4 (int8 arithmetic) is the only fast one on x86: the default computes in float32,
# for 2 and 8 bits 10 to 16 times slower than float (measured on onnxruntime 1.31.1).
_ACCURACY_LEVEL = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Lowered:
    """What takes a site's place.

    Attributes:
        old: The nodes it replaces, in graph order.
        result: The value that takes the place of the last of them.
        main: The computing node; it gets the planned node's name.
    """

    old: tuple[ir.Node, ...]
    result: ir.Value
    main: ir.Node


Lowering = Callable[[Site, Tape], Lowered]


def matmul_integer_to_float(site: Site, tape: Tape) -> Lowered:
    """Static u8 x s8 to float32, with the bias inside."""
    x, w = site.operand(0), site.operand(1)
    bias, add = _bias(site, w)
    result = tape.op(
        "MatMulIntegerToFloat",
        *(x.q, w.q, x.scale, w.scale, x.zero_point),
        *_optional(None if w.has_zero_zero_point() else w.zero_point, bias),
        domain=_MICROSOFT,
    )
    return Lowered((site.node, *add), result, tape.nodes[-1])


def matmul_by_row(site: Site, tape: Tape) -> Lowered:
    """A scale per row, computed at run time.

    The bias stays outside: with row scales the kernel of onnxruntime 1.31.1 multiplies the bias by
    the row's scale too.
    """
    x, w = site.operand(0), site.operand(1)
    result = tape.op(
        "MatMulIntegerToFloat",
        *(x.q, w.q, x.scale, w.scale, x.zero_point),
        *_optional(None if w.has_zero_zero_point() else w.zero_point),
        domain=_MICROSOFT,
    )
    return Lowered((site.node,), result, tape.nodes[-1])


def dynamic_quantize_matmul(site: Site, tape: Tape) -> Lowered:
    """The operator quantizes its float input itself, exactly as DynamicQuantizeLinear does."""
    x, w = site.operand(0), site.operand(1)
    source = x.q.producer()
    if source is None or source.op_type != "DynamicQuantizeLinear":
        raise refuse(site.node, "its input is not quantized at run time", site.kernel)
    bias, add = _bias(site, w)
    result = tape.op(
        "DynamicQuantizeMatMul",
        *(source.inputs[0], w.q, w.scale),
        *_optional(None if w.has_zero_zero_point() else w.zero_point, bias),
        domain=_MICROSOFT,
    )
    return Lowered((site.node, *add), result, tape.nodes[-1])


def qlinear_matmul(site: Site, tape: Tape) -> Lowered:
    """Static u8 x s8 to u8."""
    x, w, y = site.operand(0), site.operand(1), site.stored()
    if site.absorbed and site.absorbed[0].op_type not in ("Relu", "Clip"):
        raise refuse(site.node, "QLinearMatMul has no bias", site.kernel)
    result = tape.op(
        "QLinearMatMul",
        *(x.q, x.scale, _zero_point(x, tape), w.q, w.scale, _zero_point(w, tape)),
        *y.inputs[1:3],
    )
    return _stored(site, tape, result)


def matmul_nbits(site: Site, tape: Tape) -> Lowered:
    """Integers of few bits in groups along K; activations come and go as floats."""
    w = site.operand(1)
    layout, (data, scale, zero_point) = nbits_inputs(site, tape)
    (k, n), dtype = w.matrix, w.dequantize.outputs[0].dtype
    bias, add = _bias(site, w)
    x = site.node.inputs[0]
    # Chains of float16 MatMulNBits and Cast overwrite their inputs below level "all" (1.31.1), and
    # the kernel computes in float32 anyway: it is given float32, and the Casts stand in the graph.
    is_half = dtype is ir.DataType.FLOAT16
    if is_half:
        x = tape.op("Cast", x, to=ir.DataType.FLOAT)
        bias = bias and tape.op("Cast", bias, to=ir.DataType.FLOAT)
    result = tape.op(
        "MatMulNBits",
        x,
        data,
        scale,
        *_optional(zero_point, None, bias),  # None: g_idx
        domain=_MICROSOFT,
        K=k,
        N=n,
        bits=layout.bits,
        block_size=layout.block_size,
        accuracy_level=_ACCURACY_LEVEL,
    )
    main = tape.nodes[-1]
    if w.spec.float_zero:
        assert x is not None, "a product has an input"
        result = tape.op("Add", result, float_zero_product(tape, w, x))
    if is_half:
        result = tape.op("Cast", result, to=ir.DataType.FLOAT16)
    return Lowered((site.node, *add), result, main)


def qlinear_conv(site: Site, tape: Tape) -> Lowered:
    """Static u8 x s8 to u8 with an int32 bias; attributes stay."""
    x, w, y = site.operand(0), site.operand(1), site.stored()
    bias = None
    if len(site.node.inputs) > 2 and site.node.inputs[2] is not None:
        bias = site.operand(2).q
    pixels, weight = in_fours(site.node, x.q, w, tape)
    result = tape.op(
        "QLinearConv",
        *(pixels, x.scale, _zero_point(x, tape), weight, w.scale, _zero_point(w, tape)),
        *(y.inputs[1], y.inputs[2], *_optional(bias)),
        **_attributes(site.node),
    )
    return _stored(site, tape, result)


def qlinear_binary(op_type: str) -> Lowering:
    """QLinearAdd or QLinearMul: both operands and the result in low precision."""

    def lower(site: Site, tape: Tape) -> Lowered:
        a, b, y = site.operand(0), site.operand(1), site.stored()
        result = tape.op(
            op_type,
            *(a.q, a.scale, _zero_point(a, tape), b.q, b.scale, _zero_point(b, tape)),
            *y.inputs[1:3],
            domain=_MICROSOFT,
        )
        return _stored(site, tape, result)

    return lower


def qlinear_unary(op_type: str, *, ignored: Mapping[str, int] | None = None) -> Lowering:
    """A QLinear operator of one operand; attributes stay.

    Args:
        op_type: Operator of com.microsoft.
        ignored: Attributes it lacks, with the only value they may have (all elements of a list).
    """

    def lower(site: Site, tape: Tape) -> Lowered:
        x, y = site.operand(0), site.stored()
        attributes = _attributes(site.node)
        for name, neutral in (ignored or {}).items():
            attr = attributes.pop(name, None)
            if attr is not None and any(item != neutral for item in np.atleast_1d(attr.value)):
                raise refuse(site.node, f"{op_type} has no {name} = {attr.value}", site.kernel)
        result = tape.op(
            op_type,
            *(x.q, x.scale, _zero_point(x, tape), *y.inputs[1:3]),
            domain=_MICROSOFT,
            **attributes,
        )
        return _stored(site, tape, result)

    return lower


def qlinear_concat(site: Site, tape: Tape) -> Lowered:
    """Concat of operands that each have parameters of their own."""
    y = site.stored()
    operands = [site.operand(index) for index in range(len(site.node.inputs))]
    result = tape.op(
        "QLinearConcat",
        *y.inputs[1:3],
        *(item for x in operands for item in (x.q, x.scale, _zero_point(x, tape))),
        domain=_MICROSOFT,
        **_attributes(site.node),
    )
    return _stored(site, tape, result)


def float_matmul(site: Site, tape: Tape) -> Lowered:
    """The product stays in float; its weight is made from the file's form of it."""
    if site.operand(1).dequantize.domain != DOMAIN or site.operand(1).spec.scales is not None:
        dequantized_weight(site)
    return already_integer(site, tape)


def already_integer(site: Site, tape: Tape) -> Lowered:
    """``insert-qdq`` wrote the node in its final form."""
    return Lowered((), site.node.outputs[0], site.node)


LOWERINGS: Mapping[str, Lowering] = {
    "matmul-static": matmul_integer_to_float,
    "matmul-static-u8": qlinear_matmul,
    "matmul-dynamic": dynamic_quantize_matmul,
    "matmul-token": matmul_by_row,
    "matmul-weight": matmul_nbits,
    "matmul-weight-float": float_matmul,
    "gather-weight": already_integer,
    "gather-weight-blocks": already_integer,
    "conv-static": qlinear_conv,
    "add-static": qlinear_binary("QLinearAdd"),
    "mul-static": qlinear_binary("QLinearMul"),
    "sigmoid-static": qlinear_unary("QLinearSigmoid"),
    "leaky-relu-static": qlinear_unary("QLinearLeakyRelu"),
    "average-pool-static": qlinear_unary("QLinearAveragePool", ignored={"dilations": 1}),
    "global-average-pool-static": qlinear_unary("QLinearGlobalAveragePool"),
    "concat-static": qlinear_concat,
}


def _stored(site: Site, tape: Tape, result: ir.Value) -> Lowered:
    """Close a site whose result is stored; clamps that Q does not imply clamp the integers."""
    main, y = tape.nodes[-1], site.stored()
    zero_point = constant(y.inputs[2])
    assert zero_point is not None
    for clamp in site.absorbed:
        if not is_redundant_clamp(clamp, y):
            low, high = clamp_integers(clamp, y)
            result = tape.op(
                "Clip",
                result,
                np.asarray(low, zero_point.dtype),
                np.asarray(high, zero_point.dtype),
            )
    return Lowered((site.node, *site.absorbed, y), result, main)


def _bias(site: Site, weight: Operand) -> tuple[ir.Value | None, tuple[ir.Node, ...]]:
    """The bias ``[N]`` that is absorbed, with the Add it comes from."""
    if not site.absorbed:
        return None, ()
    add = site.absorbed[0]
    shape = weight.dequantize.outputs[0].shape or weight.q.shape
    channels = shape[-1] if shape is not None else None
    assert isinstance(channels, int)
    value = bias_operand(add, site.node.outputs[0], channels)
    if value is None or len(site.absorbed) > 1:
        raise refuse(add, "it is not the addition of a constant bias", site.kernel)
    array = constant(value)
    assert array is not None
    if array.ndim == 1 and value.is_initializer():
        return value, (add,)
    graph = site.node.graph
    assert isinstance(graph, ir.Graph)
    return add_initializer(graph, f"{value.name}/flat", array.reshape(-1)), (add,)


def _zero_point(operand: Operand, tape: Tape) -> ir.Value:
    """The zero point as an input that the operator demands."""
    if operand.zero_point is not None:
        return operand.zero_point
    dtype = operand.q.dtype
    shape = operand.scale.shape
    assert dtype is not None
    assert shape is not None
    zeros = np.zeros(shape.numpy(), dtype.numpy())
    return add_initializer(tape.graph, f"{operand.q.name}/zero_point", zeros)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attr for name, attr in node.attributes.items() if isinstance(attr, ir.Attr)}


def _optional(*inputs: ir.Value | None) -> tuple[ir.Value | None, ...]:
    """Optional inputs without the absent ones at the end."""
    count = len(inputs)
    while count and inputs[count - 1] is None:
        count -= 1
    return inputs[:count]

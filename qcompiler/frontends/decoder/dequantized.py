"""A quantized layer in the graph: its integers behind a DequantizeLinear, all constants lazy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import Emitter
from qcompiler.frontends.decoder.quantized import QuantizedLinear
from qcompiler.ir.provenance import SPEC
from qcompiler.numerics.packing import integer_tensor

__all__ = ["dequantized"]

# What DequantizeLinear of the emitter's opset reads; integers of 2 bits only from opset 25 on.
_HOLDERS = {ir.DataType.UINT2: ir.DataType.UINT8}


def dequantized(
    emit: Emitter,
    x: ir.Value,
    linear: QuantizedLinear,
    name: str,
    columns: tuple[int, int] | None = None,
) -> tuple[ir.Value, ir.Value]:
    """The input of a quantized layer, in the order of its rows, and its weight ``[K, N]``.

    A layer whose groups are of inputs far from each other (GPTQ with ``desc_act``) reads them
    gathered: the products are the same, only summed up in another order.

    Args:
        emit: Where.
        x: Input ``[batch, sequence, K]``.
        linear: The layer.
        name: Of the layer in the graph.
        columns: First output and the one behind the last; None is all.
    """
    k, n = linear.shape
    begin, end = columns or (0, n)
    spec, width = linear.spec, end - begin
    groups = -(-k // (spec.group_size or k))
    holder = _HOLDERS.get(spec.dtype, spec.dtype)

    def add(
        part: str, rows: int, kind: ir.DataType, make: Callable[[], npt.NDArray[Any]]
    ) -> ir.Value:
        tensor = ir.LazyTensor(
            lambda: integer_tensor(np.ascontiguousarray(make()[:, begin:end]), kind),
            kind,
            ir.Shape([rows, width]),
            name=f"{name}.{part}",
        )
        return emit.constant(f"{name}.{part}", tensor)

    weight = emit.op(
        "DequantizeLinear",
        [
            add("q", k, holder, linear.codes),
            add("scale", groups, ir.DataType.FLOAT, linear.scale),
            add("zero_point", groups, holder, linear.zero_point),
        ],
        f"{name}/DequantizeLinear",
        (k, width),
        attributes={"axis": 0, "block_size": spec.group_size},
        module=linear.module,
    )
    emit.nodes[-1].metadata_props[SPEC] = str(spec)
    if linear.order is None:
        return x, weight
    assert x.shape is not None, "the emitter gives every value a shape"
    order = emit.constant(f"{name}.order", linear.order)
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in x.shape)
    gathered = emit.op(
        "Gather", [x, order], f"{name}/Gather", dims, attributes={"axis": 2}, module=linear.module
    )
    return gathered, weight

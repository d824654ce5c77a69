"""Refuse weights that hold NaN or infinity, at the door and by name.

Only weights are looked at: a float initializer that is an operand of an operator which multiplies
by it (the table below), directly or behind a Cast, Reshape, Transpose, Identity, Squeeze or
Unsqueeze. Constants of other operators may hold infinity on purpose: attention masks, limits of
Clip, fill values of Where and Pad. A table of Gather may hold -inf (precomputed masks), and what
is added or multiplied element by element infinity, but never NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.lazy import view_of
from qcompiler.ir.walk import all_graphs

__all__ = ["check_finite"]

# Operator -> input indices that are weights.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DequantizeLinear": (1,),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
# Constants of these may be infinite (masks), but NaN makes every output NaN.
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
_CARRIERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}
)


def check_finite(model: ir.Model, source: str) -> None:
    """Read every float weight once (a memory-mapped one through the page cache).

    Raises:
        QcError: QC301, naming the initializer, the node that multiplies by it, and how many
            elements are not finite.
    """
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype not in _FLOATS:
                continue
            user = next(_multiplied_by(value), None)
            if user is not None:
                _check(value, tensor, user, source)
                continue
            user = next((node for node, _ in value.uses() if node.op_type in _ARITHMETIC), None)
            if user is not None:
                _check(value, tensor, user, source, nan_only=True)


def _multiplied_by(value: ir.Value) -> Iterator[ir.Node]:
    carried = [value]
    for moved in carried:  # grows meanwhile
        for node, index in moved.uses():
            if index in _WEIGHTS.get(node.op_type, ()):
                yield node
            elif node.op_type in _CARRIERS and index == 0:
                carried.append(node.outputs[0])


def _check(
    value: ir.Value,
    tensor: ir.TensorProtocol,
    user: ir.Node,
    source: str,
    *,
    nan_only: bool = False,
) -> None:
    view = view_of(tensor)
    array = tensor.numpy() if view is None else view.stored.read()  # not widened only for this
    if array.dtype.itemsize < 4:
        total = np.sum(array, dtype=np.float32)  # their own sums overflow
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sum(array)
    if np.isfinite(total):  # NaN and infinity survive a sum, and this reads the data only once
        return
    nans, infs = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nan_only and nans == 0:
        return
    if user.op_type == "Gather" and nans == 0 and not bool(np.isposinf(array).any()):
        return
    if nans + infs:
        raise QcError(
            Code.NOT_FINITE_WEIGHT,
            source,
            f"initializer {value.name!r}, a weight of {user.name} ({user.op_type}), holds {nans} "
            f"NaN and {infs} infinite of {array.size} elements",
            "the checkpoint is damaged or training diverged; load an earlier one",
            nans=nans,
            infs=infs,
        )

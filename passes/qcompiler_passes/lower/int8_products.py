"""Products of int8 weights and rows of uint8, from the weights of ``MatMulNBits``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.numerics.byte_columns import byte_columns, column_steps, row_shares
from qcompiler_passes.apply.weight_functions import COLUMN_STEPS, DOMAIN
from qcompiler_passes.apply.weight_writer import add_lazy

__all__ = [
    "ByteWeight",
    "Rows",
    "byte_product",
    "byte_weight",
    "quantized_rows",
    "stored_weight",
]

Floats = npt.NDArray[np.float32]

_PREFIX = "prefill/"
_TINY = np.float32(np.finfo(np.float32).tiny)  # of a row of zeros


@dataclasses.dataclass(frozen=True, slots=True)
class ByteWeight:
    """A weight in int8, one scale per column.

    Attributes:
        q: ``[K, N]`` int8.
        scale: ``[N]`` float32.
        size: Bytes of both.
        stored: Whether the file holds them.
    """

    q: ir.Value
    scale: ir.Value
    size: int
    stored: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """An activation in uint8 around 128, one scale per row.

    Attributes:
        q: ``[..., M, K]`` uint8.
        scale: ``[..., M, 1]`` float32.
    """

    q: ir.Value
    scale: ir.Value


def byte_weight(
    tape: Tape, product: ir.Node, rows: Floats | None = None, columns: Floats | None = None
) -> ByteWeight:
    """Nodes of constants that make int8 of the weight of a ``MatMulNBits``.

    The weight is rounded a second time, in steps of a 127th of the largest number that the codes
    of a column can say: a sixteenth of the 4-bit step of the group with the largest scale.

    Args:
        tape: Takes the nodes.
        product: The ``MatMulNBits``.
        rows: ``[K]``, > 0: what each row is multiplied by; None leaves them.
        columns: ``[N]``, > 0: what each column is divided by; None leaves them.
    """
    data, scale, zero_point = (_at(product, index) for index in (1, 2, 3))
    assert scale is not None, "a product has scales"
    k, n, bits, size = (
        product.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")
    )
    blocks = -(-k // size)
    if zero_point is None:
        middle = np.array(1 << (bits - 1), np.uint8)
        zeros = tape.op("Expand", middle, np.array([blocks, n], np.int64))
    else:
        zeros = _columns(tape, zero_point, bits, n, blocks, -(-blocks * bits // 8) * 8 // bits)
    scale = tape.op("Reshape", scale, np.array([n, blocks], np.int64))
    fine: dict[str, Any] = {}  # the step of a row, relative to that of its column
    unit = np.array(1, np.float16)
    if rows is not None:
        largest, shares = row_shares(rows, size)
        scale = tape.op("Mul", scale, largest[None])
        unit, fine = (1 / shares).astype(np.float16), {"axis": 0}
    steps, ratio = tape.op(
        COLUMN_STEPS,
        scale,
        zeros,
        np.array((1 << bits) - 1, np.float32),
        domain=DOMAIN,
        outputs=2,
    )
    codes = _columns(tape, data, bits, n, k, blocks * size)
    numbers = tape.op("DequantizeLinear", codes, ratio, zeros, axis=0, block_size=size)
    q = tape.op("QuantizeLinear", numbers, unit, np.zeros(unit.shape, np.int8), **fine)
    if columns is not None:
        steps = tape.op("Div", steps, columns)
    q.type, q.shape = ir.TensorType(ir.DataType.INT8), ir.Shape([k, n])
    steps.type, steps.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([n])
    return ByteWeight(q, steps, k * n + 4 * n, stored=False)


def stored_weight(
    tape: Tape, product: ir.Node, rows: Floats | None = None, columns: Floats | None = None
) -> ByteWeight:
    """The same as constants, computed when they are written.

    Weights that are themselves made when the model is loaded get :func:`byte_weight`.
    """
    values = [_at(product, index) for index in (1, 2, 3)]
    if any(value is not None and value.const_value is None for value in values):
        return byte_weight(tape, product, rows, columns)
    # asked for now: while a model is written, values hold what stands for their tensors
    tensors = [None if value is None else value.const_value for value in values]
    k, n, bits, size = (
        product.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")
    )
    largest, shares = (None, None) if rows is None else row_shares(rows, size)

    def constants() -> tuple[Any, Any, Any]:
        arrays: list[Any] = [None if tensor is None else tensor.numpy() for tensor in tensors]
        data, scale, zero_point = arrays
        scale = scale.reshape(n, data.shape[1]) * (1 if largest is None else largest)
        return data, scale, None if zero_point is None else zero_point.reshape(n, -1)

    name = f"{_PREFIX}{product.name}"
    q = add_lazy(
        tape.graph, f"{name}/q", (k, n), ir.DataType.INT8,
        lambda: byte_columns(*constants(), bits, k, shares),
    )  # fmt: skip
    steps = add_lazy(
        tape.graph, f"{name}/scale", (n,), ir.DataType.FLOAT,
        lambda: column_steps(*constants()[1:], bits) / (1 if columns is None else columns),
    )  # fmt: skip
    return ByteWeight(q, steps, k * n + 4 * n, stored=True)


def _columns(
    tape: Tape, packed: ir.Value | None, bits: int, n: int, length: int, padded: int
) -> ir.Value:
    """Codes ``[length, N]``, a byte each, of ``[N, padded]`` packed low bits first.

    The runtime keeps all that it folds until everything is folded: few nodes, and the transposition
    comes first, while elements are narrow.
    """
    rows = tape.op("Reshape", packed, np.array([n, -1, 1], np.int64))
    rows = tape.op("Transpose", rows, perm=[1, 2, 0])
    parts = []
    for start in range(0, 8, bits):
        part = rows
        if start:
            part = tape.op("BitShift", part, np.array(start, np.uint8), direction="RIGHT")
        if start + bits < 8:
            part = tape.op("BitwiseAnd", part, np.array((1 << bits) - 1, np.uint8))
        parts.append(part)
    codes = parts[0] if len(parts) == 1 else tape.op("Concat", *parts, axis=1)
    codes = tape.op("Reshape", codes, np.array([-1, n], np.int64))
    if padded != length:
        codes = tape.op("Slice", codes, *(np.array([end], np.int64) for end in (0, length)))
    return codes  # type: ignore[no-any-return]


def quantized_rows(tape: Tape, x: ir.Value) -> Rows:
    """Round each row of ``x`` in steps of a 127th of its largest magnitude."""
    last = np.array([-1], np.int64)
    largest = tape.op("ReduceMax", tape.op("Abs", x), last, keepdims=1)
    steps = tape.op("Div", largest, np.array(127, np.float32))
    scale = tape.op("Max", steps, np.array(_TINY))
    rounded = (np.array(1, np.float32), np.array(128, np.uint8))
    return Rows(tape.op("QuantizeLinear", tape.op("Div", x, scale), *rounded), scale)


def byte_product(tape: Tape, x: Rows, weight: ByteWeight, bias: ir.Value | None) -> ir.Value:
    """``x @ weight + bias``; the kernel would multiply the bias by the scale of the row, too."""
    y = tape.op(
        "MatMulIntegerToFloat",
        *(x.q, weight.q, x.scale, weight.scale, np.array(128, np.uint8)),
        domain="com.microsoft",
    )
    return y if bias is None else tape.op("Add", y, bias)  # type: ignore[no-any-return]


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None

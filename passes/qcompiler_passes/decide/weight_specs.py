"""The spec of a weight-only constant, from what is wanted and what a row takes."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from qcompiler.recipe_options import DoubleQuantOptions
from qcompiler.schemes import Granularity, QSpec
from qcompiler_passes.decide.wishes import Wish

__all__ = ["weight_only_spec"]

_CODEBOOKS = {"nf4": "nf4", "fp4": "fp4", "fp4-bnb": "fp4bnb"}
_WHOLE_COLUMN = -1


def weight_only_spec(row: QSpec, wish: Wish) -> QSpec:
    """What a row that takes blocks of integers makes of a wish.

    Args:
        row: The row's own spec: blocks along the in-features, signed or not.
        wish: Bits, groups, format and scales that are wanted.
    """
    codebook = _CODEBOOKS.get(wish.format, "")
    symmetric = wish.symmetric or row.is_signed or bool(codebook)
    if not codebook and wish.bits == 1 and symmetric:
        codebook = "b1"  # one bit without zero point: signs
    spec = QSpec.parse(f"{codebook}g1@0") if codebook else _integers(wish.bits, row.is_signed)
    column = wish.group_size == _WHOLE_COLUMN
    axis = row.axis or 0
    return dataclasses.replace(
        spec,
        granularity=Granularity.CHANNEL if column else Granularity.BLOCK,
        axis=1 - axis if column else axis,
        group_size=None if column else wish.group_size,
        symmetric=symmetric,
        float_zero=wish.float_zero and not symmetric,
        scales=None if wish.double_quant is None else _scales(wish.double_quant),
    )


def _integers(bits: int, signed: bool) -> QSpec:
    dtypes = {
        2: (ir.DataType.UINT2, ir.DataType.INT2),
        4: (ir.DataType.UINT4, ir.DataType.INT4),
        8: (ir.DataType.UINT8, ir.DataType.INT8),
    }
    width = next(width for width in dtypes if bits <= width)
    fewer = bits if bits < width else None
    return QSpec(dtypes[width][signed], Granularity.BLOCK, 0, 1, symmetric=False, bits=fewer)


def _scales(options: DoubleQuantOptions) -> QSpec:
    spec = _integers(max(options.bits, 3), options.symmetric)
    fewer = options.bits if options.bits < spec.dtype.bitwidth else None
    return dataclasses.replace(
        spec, group_size=options.group_size, symmetric=options.symmetric, bits=fewer
    )

"""What operator functions say about their operands, and how they read them.

A parameter annotated :data:`Ints` or :data:`Number` is one that the ONNX operator takes as an
input, an attribute or either, by version. Where it is constant the lifted graph holds it as a
Python literal, else as a tensor; :func:`ints` and :func:`number` read both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

__all__ = [
    "Ints",
    "Number",
    "Table",
    "array_to_torch",
    "ints",
    "number",
    "numpy_to_torch",
    "torch_dtype",
]

Ints = Annotated[Any, "ints"]
Number = Annotated[Any, "number"]

Table = Mapping[tuple[str, str, int], Callable[..., Any]]
"""``(domain, op_type, since_version) -> function``; inputs by position, attributes by name."""

_TORCH = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT4: torch.int8,  # torch computes on no smaller integer
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
}


def torch_dtype(code: int) -> torch.dtype:
    """The torch type for an ONNX ``TensorProto.DataType``; ``KeyError`` when there is none."""
    return _TORCH[ir.DataType(code)]


def ints(value: Sequence[int] | torch.Tensor | None) -> list[int]:
    """Integers as a list; nothing for None. A tensor is read, so its values must be known."""
    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [int(item) for item in value.flatten().tolist()]
    return [int(item) for item in value]


def number(value: float | torch.Tensor | None, default: float) -> Any:
    """A Python number or a one-element tensor, which keeps its gradient, as a scalar."""
    if value is None:
        return default
    return value.reshape(()) if isinstance(value, torch.Tensor) else value


def array_to_torch(array: npt.NDArray[Any]) -> Any:
    """A copy for torch; text, which nothing that is lifted computes on, stays as it is."""
    return array if array.dtype == object else torch.from_numpy(np.array(array))


def numpy_to_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """A copy of a constant; sub-byte integers unpacked into one byte each."""
    dtype = torch_dtype(tensor.dtype)
    array = tensor.numpy()
    if tensor.dtype.bitwidth < 8:
        return torch.from_numpy(array.astype("int8" if dtype is torch.int8 else "uint8"))
    if array.dtype.name in _ML_DTYPES:  # torch has the type, but does not take the array
        return torch.from_numpy(array.view(f"u{array.itemsize}").copy()).view(dtype)
    return torch.from_numpy(array.copy())


_ML_DTYPES = frozenset(("bfloat16", "float8_e4m3fn", "float8_e5m2"))

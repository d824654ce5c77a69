"""Probes of 8-bit floats: the layers of their rows, and what the optimizer does to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import QcError
from qcompiler.ir.edit import Tape
from qcompiler.numerics.float8 import to_float8
from qcompiler.runtime.session import runtime_errors
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Kernel

if TYPE_CHECKING:
    from qcompiler.targets.probe_layers import Build

__all__ = ["FLOAT8_ENTRIES", "FLOAT8_TRAP_PROBES", "float8_layer"]

Floats = npt.NDArray[np.float32]
_Values = Mapping[str, ir.Value]

FLOAT8_ENTRIES = {"session.disable_quant_qdq": "1"}  # what artifacts with 8-bit floats set

_SCALE = np.asarray(2.0**-6, np.float32)  # a power of two: dividing by it is exact
_E4M3 = ir.DataType.FLOAT8E4M3FN


def float8_layer(
    row: Kernel, rows: int, inner: int, columns: int, rng: np.random.Generator
) -> tuple[Mapping[str, Build], Floats, Floats]:
    """A MatMul, or a Conv of one tap, by a row of 8-bit floats.

    Returns:
        How it is built in form "qdq" and in "float", its input ``x``, and what must come out.
    """
    spec, weight = row.inputs[0], row.inputs[1]
    assert spec is not None
    assert weight is not None
    x = rng.normal(0, 1, (rows, inner)).astype(np.float32)
    scale = rng.uniform(0.5, 1.0, columns).astype(np.float32) / np.float32(1000)
    q = to_float8(rng.normal(0, weight.qmax / 8, (inner, columns)), weight.dtype)
    real = q.astype(np.float32) * scale
    expected = to_float8(x / _SCALE, spec.dtype).astype(np.float32) * _SCALE @ real
    axis = 1
    if row.op == "Conv":  # rows become pixels: [rows, inner] -> [1, inner, rows]
        axis = 0
        x, expected = np.ascontiguousarray(x.T[None]), np.ascontiguousarray(expected.T[None])
        q, real = (np.ascontiguousarray(item.T[..., None]) for item in (q, real))

    def qdq(tape: Tape, values: _Values) -> Any:
        wide = tape.op("DequantizeLinear", q, scale, axis=axis)
        return tape.op(row.op, _through(tape, values["x"], spec.dtype), wide)

    builds: dict[str, Build] = {
        "float": lambda tape, values: tape.op(row.op, values["x"], real),
        "qdq": qdq,
    }
    return builds, x, expected


def _through(tape: Tape, x: ir.Value, dtype: ir.DataType, *, typed: bool = True) -> Any:
    """Q and DQ of ``x``, the type named by the attribute or by a zero point."""
    zero = [] if typed else [np.zeros((), dtype.numpy())]
    q = tape.op("QuantizeLinear", x, _SCALE, *zero, output_dtype=dtype if typed else None)
    return tape.op("DequantizeLinear", q, _SCALE, *zero)


def _relu_is_dropped() -> tuple[bool, str]:
    x = np.linspace(-2, 2, 32, dtype=np.float32)

    def build(tape: Tape, values: _Values) -> Any:
        return _through(tape, tape.op("Relu", values["x"]), _E4M3, typed=False)

    found = _run(build, x)
    least = float(found.min())
    return least < 0, f"the smallest output behind a Relu is {least:g}"


def _becomes_integer() -> tuple[bool, str]:
    x = np.ones((2, 4, 32), np.float32)

    def build(tape: Tape, values: _Values) -> Any:
        q = np.ones((32, 8), _E4M3.numpy())
        wide = tape.op("DequantizeLinear", q, np.ones(8, np.float32), axis=1)
        return tape.op("MatMul", _through(tape, values["x"], _E4M3), wide)

    try:
        _run(build, x)
    except QcError as error:
        return True, f"does not load: {error.diagnostic.message}"[:160]
    except runtime_errors() as error:
        return True, f"fails: {error}"[:160]
    return False, "loads and runs"


def _run(build: Build, x: Floats) -> Floats:
    from qcompiler.targets.probe_layers import model_of
    from qcompiler.targets.probe_timing import compute

    return np.asarray(compute(model_of([build], {"x": x}), {"x": x}, SessionSettings("all"))[0])


FLOAT8_TRAP_PROBES = {
    "float8-relu": _relu_is_dropped,
    "float8-fused": _becomes_integer,
}

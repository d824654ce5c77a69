"""Products of matrices in the forms that a probe compares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.numerics.packing import pack_bits
from qcompiler.targets.cost import Work
from qcompiler.targets.probe_tensors import (
    EXACT,
    MICROSOFT,
    NOTHING,
    ROUNDED,
    STEP,
    Array,
    Build,
    Probed,
    Stored,
    dequantized,
    output_parameters,
    qdq_output,
    qdq_weight,
    random_activation,
    random_weight,
    rounded,
)
from qcompiler.targets.schema import Kernel, Target

__all__ = ["matmul", "quantize_by_row"]


def matmul(
    row: Kernel,
    target: Target,
    size: tuple[int, ...],
    rng: np.random.Generator,
    bits: int,
    numbers: bool,
) -> Probed:
    """A product of a row, ``size`` being (M, K, N)."""
    rows, inner, columns = size
    spec, weight = row.inputs[0], row.inputs[1]
    assert weight is not None
    work = Work(rows * inner * columns, rows, max(rows * inner, rows * columns))
    bias = rng.normal(0, 0.1, columns).astype(np.float32) if "Add" in row.fuses else None
    if spec is None:
        return _matmul_blocks(work, size, bits, weight.group_size or 128, bias, rng, numbers)
    w = random_weight(target.weight_spec(weight), (inner, columns), 1, rng)
    x = random_activation(spec, (rows, inner), rng)
    builds: dict[str, Build] = {"float": lambda t, v: t.op("MatMul", v["x"], w.real)}
    real = {"x": x.real}
    if spec.dynamic:
        return _matmul_dynamic(row, work, x.real, w, bias, rng, builds, numbers)
    y = _integer_product(x, w) if numbers else NOTHING
    if row.output is None:
        optional = [] if bias is None else [None, bias]
        builds["ort"] = lambda t, v: t.op(
            "MatMulIntegerToFloat",
            *(v["x"], w.q, x.scale, w.scale.reshape(-1), x.zero_point, *optional),
            domain=MICROSOFT,
        )
        builds["qdq"] = lambda t, v: t.op("MatMul", dequantized(t, v["x"], x), qdq_weight(t, w, 1))
        feeds = {"float": real, "ort": {"x": x.q}, "qdq": real}
        expected = y if bias is None else y + bias
        if bias is not None:
            plain = builds["qdq"]
            builds["qdq"] = lambda t, v: t.op("Add", plain(t, v), _qdq_bias(t, bias, x, w))
        return Probed(work, feeds, builds, expected, EXACT * 20)
    scale, zero_point = output_parameters(row.output, y)
    builds["ort"] = lambda t, v: t.op(
        "QLinearMatMul",
        *(v["x"], x.scale, x.zero_point, w.q, w.scale.reshape(-1), w.zero_point),
        *(scale, zero_point),
    )
    builds["qdq"] = lambda t, v: qdq_output(
        t, t.op("MatMul", dequantized(t, v["x"], x), qdq_weight(t, w, 1)), scale, zero_point
    )
    stored = rounded(y, scale, zero_point, row.output)
    return Probed(
        work,
        {"float": real, "ort": {"x": x.q}, "qdq": real},
        builds,
        stored.real,
        STEP,
        stored.parameters,
    )


def _qdq_bias(tape: Tape, bias: Array, x: Stored, w: Stored) -> ir.Value:
    """An int32 bias: a float one would turn the MatMul into a float Gemm (static-bias-in-qdq)."""
    scale = (x.scale * w.scale.reshape(-1)).astype(np.float32)
    q = np.rint(bias / scale).astype(np.int32)
    value: ir.Value = tape.op("DequantizeLinear", q, scale, np.zeros(len(q), np.int32), axis=0)
    return value


def _matmul_dynamic(
    row: Kernel,
    work: Work,
    x: Array,
    w: Stored,
    bias: Array | None,
    rng: np.random.Generator,
    builds: dict[str, Build],
    numbers: bool,
) -> Probed:
    x = (x * rng.uniform(0.2, 1.0, (len(x), 1))).astype(np.float32)
    feeds = {"float": {"x": x}, "ort": {"x": x}, "qdq": {"x": x}}
    if row.inputs[0] is not None and row.inputs[0].granularity.value == "k":
        scale = np.maximum(np.abs(x).max(axis=1, keepdims=True) / 127, np.float32(1e-12))
        q = np.clip(np.rint(x / scale) + 128, 0, 255)
        expected = ((q - 128) @ w.q.astype(np.float64)) * scale * w.scale if numbers else NOTHING
        builds["ort"] = lambda t, v: _by_row(t, v["x"], w)
        builds["qdq"] = lambda t, v: _by_row_qdq(t, v["x"], w)
        builds["kernel"] = lambda t, v: _row_product(t, v["q"], v["scale"], w)
        feeds["kernel"] = {"q": q.astype(np.uint8), "scale": scale.astype(np.float32)}
        return Probed(work, feeds, builds, expected.astype(np.float32), STEP)
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((hi - lo) / 255)
    zero = np.clip(np.rint(-lo / step), 0, 255)
    q = np.clip(np.rint(x / step) + zero, 0, 255)
    expected = ((q - zero) @ w.q.astype(np.float64)) * step * w.scale if numbers else NOTHING
    optional = [] if bias is None else [None, bias]
    builds["ort"] = lambda t, v: t.op(
        "DynamicQuantizeMatMul", v["x"], w.q, w.scale.reshape(-1), *optional, domain=MICROSOFT
    )

    def qdq(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        quantized, scale, zero_point = tape.op("DynamicQuantizeLinear", values["x"], outputs=3)
        real = tape.op("DequantizeLinear", quantized, scale, zero_point)
        value: ir.Value = tape.op("MatMul", real, qdq_weight(tape, w, 1))
        return value if bias is None else tape.op("Add", value, bias)

    builds["qdq"] = qdq
    if bias is not None:
        expected = expected + bias
    return Probed(work, feeds, builds, expected.astype(np.float32), STEP)


def _by_row(tape: Tape, x: ir.Value, w: Stored) -> ir.Value:
    return _row_product(tape, *quantize_by_row(tape, x), w)


def _by_row_qdq(tape: Tape, x: ir.Value, w: Stored) -> ir.Value:
    q, scale = quantize_by_row(tape, x)
    one, middle = np.asarray(1, np.float32), np.asarray(128, np.uint8)
    real = tape.op("Mul", tape.op("DequantizeLinear", q, one, middle), scale)
    value: ir.Value = tape.op("MatMul", real, qdq_weight(tape, w, 1))
    return value


def _row_product(tape: Tape, q: ir.Value, scale: ir.Value, w: Stored) -> ir.Value:
    middle = np.asarray(128, np.uint8)
    value: ir.Value = tape.op(
        "MatMulIntegerToFloat", q, w.q, scale, w.scale.reshape(-1), middle, domain=MICROSOFT
    )
    return value


def quantize_by_row(tape: Tape, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Quantize with a scale per row, as lowering writes it; returns the integers and the scale."""
    largest = tape.op("ReduceMax", tape.op("Abs", x), np.array([-1], np.int64), keepdims=1)
    share = tape.op("Mul", largest, np.asarray(1 / 127, np.float32))
    scale = tape.op("Max", share, np.asarray(1e-12, np.float32))
    one, middle = np.asarray(1, np.float32), np.asarray(128, np.uint8)
    return tape.op("QuantizeLinear", tape.op("Div", x, scale), one, middle), scale


def _matmul_blocks(
    work: Work,
    size: tuple[int, ...],
    bits: int,
    group: int,
    bias: Array | None,
    rng: np.random.Generator,
    numbers: bool,
) -> Probed:
    rows, inner, columns = size
    group = min(group, inner)
    blocks, middle = inner // group, 2 ** (bits - 1)
    codes = rng.integers(0, 2**bits, (columns, blocks, group))
    scale = (rng.uniform(0.5, 1.0, (columns, blocks)) / (100 * middle)).astype(np.float32)
    real = ((codes - middle) * scale[..., None]).reshape(columns, inner).T.astype(np.float32)
    real = np.ascontiguousarray(real)
    x = rng.normal(0, 1, (rows, inner)).astype(np.float32)
    data = pack_bits(codes.astype(np.int32), bits)
    optional = [] if bias is None else [None, None, bias]
    ort: Build = lambda t, v: t.op(  # noqa: E731 - one of a table of builds
        "MatMulNBits",
        *(v["x"], data, scale, *optional),
        domain=MICROSOFT,
        K=inner,
        N=columns,
        bits=bits,
        block_size=group,
        accuracy_level=4,
    )
    by_rows = np.ascontiguousarray(codes.reshape(columns, inner).T).astype(np.uint8)
    scales = np.ascontiguousarray(scale.T)
    zeros = np.full(scales.shape, middle, np.uint8)

    def qdq(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        w = tape.op("DequantizeLinear", by_rows, scales, zeros, axis=0, block_size=group)
        value: ir.Value = tape.op("MatMul", values["x"], w)
        return value if bias is None else tape.op("Add", value, bias)

    expected = x.astype(np.float64) @ real if numbers else NOTHING
    if bias is not None:
        expected = expected + bias
    builds: dict[str, Build] = {
        "float": lambda t, v: t.op("MatMul", v["x"], real),
        "ort": ort,
        "qdq": qdq,
    }
    feeds = {form: {"x": x} for form in builds}
    return Probed(work, feeds, builds, expected.astype(np.float32), ROUNDED)


def _integer_product(x: Stored, w: Stored) -> npt.NDArray[np.float32]:
    a = x.q.astype(np.float64) - float(x.zero_point)
    # float64 holds every sum of 8-bit products exactly
    return np.asarray((a @ w.q.astype(np.float64)) * x.scale * w.scale, dtype=np.float32)

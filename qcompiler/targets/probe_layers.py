"""One-node models of each row: in float, in ONNX Runtime's operators, and as Q/DQ.

With each come the numbers it must give, computed in numpy by the definition of the operator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.numerics.packing import pack_bits
from qcompiler.schemes import QSpec
from qcompiler.targets.cost import Work
from qcompiler.targets.probe_float8 import float8_layer
from qcompiler.targets.schema import Kernel, Target

__all__ = ["Array", "Build", "ConvShape", "Probed", "model_of", "probed_layer", "quantize_by_row"]

Array = npt.NDArray[Any]
Build = Callable[[Tape, Mapping[str, ir.Value]], ir.Value]

_MS = "com.microsoft"
_OPSET = 21
_X_SCALE = np.float32(0.02)
# Tolerances, as shares of the largest expected value. Float accumulation alone differs by 1e-6;
# one step of an 8-bit output is 1/255; MatMulNBits at accuracy level 4 rounds activations to 8
# bits within blocks, which costs about 1 % on uniform data.
_EXACT = 1e-4
_STEP = 1.01 / 255
_ROUNDED = 0.03
_NOTHING = np.ones(1, np.float32)  # stands for an output that nobody will compare


@dataclasses.dataclass(frozen=True, slots=True)
class ConvShape:
    """Geometry of a convolution that keeps its picture's size unless strided."""

    batch: int
    channels: int
    filters: int
    kernel: int
    size: int
    stride: int = 1
    group: int = 1


@dataclasses.dataclass(frozen=True)
class Probed:
    """A layer in three forms.

    Attributes:
        work: What it has to do, for the cost model.
        feeds: Inputs by form: "float", "ort", "qdq", and "kernel" where the conversion of its input
            is a part of "ort" but not of the kernel.
        builds: How each form is built from its inputs.
        expected: Output 0, dequantized, as numpy computes it.
        tolerance: Largest error allowed, as a share of the largest expected value.
        stored: Scale and zero point of the output where the "ort" form stores it as integers.
    """

    work: Work
    feeds: Mapping[str, Mapping[str, Array]]
    builds: Mapping[str, Build]
    expected: Array
    tolerance: float
    stored: tuple[float, int] | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Integers with their parameters."""

    q: Array
    scale: Array
    zero_point: Array

    @property
    def real(self) -> npt.NDArray[np.float32]:
        # weights are symmetric: their zero points, one per channel, are all 0
        zero = 0 if self.zero_point.ndim else int(self.zero_point)
        return np.asarray((self.q.astype(np.float32) - zero) * self.scale, dtype=np.float32)

    @property
    def parameters(self) -> tuple[float, int]:
        return float(self.scale), int(self.zero_point)


def model_of(
    builds: Sequence[Build], feed: Mapping[str, Array], *, opset: int = _OPSET
) -> ir.Model:
    """A model with one output per build, all reading the same inputs."""
    inputs = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        for name, array in feed.items()
    }
    graph = ir.Graph(
        list(inputs.values()),
        [],
        nodes=[],
        opset_imports={"": opset, _MS: 1},
        name="probe",
    )
    for index, build in enumerate(builds):
        tape = Tape(graph, f"n{index}")
        result = build(tape, inputs)
        graph.extend(tape.nodes)
        graph.outputs.append(result)
    return ir.Model(graph, ir_version=10)


def probed_layer(
    row: Kernel,
    target: Target,
    size: tuple[int, ...] | ConvShape,
    seed: int,
    *,
    bits: int = 8,
    numbers: bool = True,
) -> Probed:
    """The layer of a row.

    Args:
        row: A kernel row of an operator known here.
        target: Its target (7-bit weights).
        size: ``(M, K, N)`` of a MatMul; a geometry of a Conv; ``(rows, width)`` of an elementwise
            operator; ``(batch, channels, height, width)`` of a pool; ``(ids, rows, width)`` of a
            Gather.
        seed: Of the random data.
        bits: Weight bits of a weight-only row.
        numbers: Compute what must come out; a layer that is only timed does not need it.

    Raises:
        KeyError: If the row has an operator that is not known here.
    """
    rng = np.random.default_rng(seed)
    if row.inputs[0] is not None and row.inputs[0].is_float8:
        return _float8(row, size, rng)
    if isinstance(size, ConvShape):
        return _conv(row, target, size, rng, numbers)
    if row.op == "MatMul":
        return _matmul(row, target, size, rng, bits, numbers)
    if row.op == "Gather":
        return _gather(size, rng)
    return _pointwise(row, size, rng)


def _float8(row: Kernel, size: tuple[int, ...] | ConvShape, rng: np.random.Generator) -> Probed:
    """A layer of 8-bit floats, of one size for convolutions."""
    rows, inner, columns = (9, 64, 48) if isinstance(size, ConvShape) else size
    work = Work(rows * inner * columns, rows, max(rows * inner, rows * columns))
    builds, x, expected = float8_layer(row, rows, inner, columns, rng)
    feeds = {form: {"x": x} for form in builds}
    return Probed(work, feeds, builds, expected, _EXACT * 20)


def _activation(spec: QSpec, shape: tuple[int, ...], rng: np.random.Generator) -> _Tensor:
    dtype = spec.dtype.numpy()
    q = rng.integers(spec.qmin, spec.qmax + 1, shape).astype(dtype)
    q.reshape(-1, shape[-1])[0] = spec.qmax  # a full row: where int16 sums would saturate
    middle = 0 if spec.is_signed else 2 ** (spec.dtype.bitwidth - 1)
    shift = 0 if spec.symmetric else 3
    return _Tensor(q, np.asarray(_X_SCALE), np.asarray(middle + shift, dtype=dtype))


def _weight(spec: QSpec, shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> _Tensor:
    q = rng.integers(spec.qmin, spec.qmax + 1, shape).astype(np.int8)
    first = [slice(None)] * len(shape)
    first[axis] = slice(0, 1)
    q[tuple(first)] = spec.qmax
    # small enough that outputs stay near 1
    scale = (rng.uniform(0.5, 1.0, shape[axis]) / 1000).astype(np.float32)
    wide = scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return _Tensor(q, wide, np.zeros(shape[axis], np.int8))


def _output(spec: QSpec, y: Array) -> tuple[Array, Array]:
    """Scale and zero point that hold all of ``y``."""
    dtype = spec.dtype.numpy()
    lo, hi = min(float(y.min()), 0.0), max(float(y.max()), 0.0)
    if spec.symmetric and spec.is_signed:
        return np.asarray(max(-lo, hi, 1e-6) / spec.qmax, np.float32), np.asarray(0, dtype)
    scale = max(hi - lo, 1e-6) / (spec.qmax - spec.qmin)
    return np.asarray(scale, np.float32), np.asarray(round(spec.qmin - lo / scale), dtype)


def _dequantized(tape: Tape, x: ir.Value, tensor: _Tensor) -> ir.Value:
    value: ir.Value = tape.op(
        "DequantizeLinear",
        tape.op("QuantizeLinear", x, tensor.scale, tensor.zero_point),
        tensor.scale,
        tensor.zero_point,
    )
    return value


def _qdq_output(tape: Tape, y: ir.Value, scale: Array, zero_point: Array) -> ir.Value:
    q = tape.op("QuantizeLinear", y, scale, zero_point)
    value: ir.Value = tape.op("DequantizeLinear", q, scale, zero_point)
    return value


def _qdq_weight(tape: Tape, w: _Tensor, axis: int) -> ir.Value:
    value: ir.Value = tape.op("DequantizeLinear", w.q, w.scale.reshape(-1), w.zero_point, axis=axis)
    return value


def _matmul(
    row: Kernel,
    target: Target,
    size: tuple[int, ...],
    rng: np.random.Generator,
    bits: int,
    numbers: bool,
) -> Probed:
    rows, inner, columns = size
    spec, weight = row.inputs[0], row.inputs[1]
    assert weight is not None
    work = Work(rows * inner * columns, rows, max(rows * inner, rows * columns))
    bias = rng.normal(0, 0.1, columns).astype(np.float32) if "Add" in row.fuses else None
    if spec is None:
        return _matmul_blocks(work, size, bits, weight.group_size or 128, bias, rng, numbers)
    w = _weight(target.weight_spec(weight), (inner, columns), 1, rng)
    x = _activation(spec, (rows, inner), rng)
    builds: dict[str, Build] = {"float": lambda t, v: t.op("MatMul", v["x"], w.real)}
    real = {"x": x.real}
    if spec.dynamic:
        return _matmul_dynamic(row, work, x.real, w, bias, rng, builds, numbers)
    y = _integer_product(x, w) if numbers else _NOTHING
    if row.output is None:
        optional = [] if bias is None else [None, bias]
        builds["ort"] = lambda t, v: t.op(
            "MatMulIntegerToFloat",
            *(v["x"], w.q, x.scale, w.scale.reshape(-1), x.zero_point, *optional),
            domain=_MS,
        )
        builds["qdq"] = lambda t, v: t.op(
            "MatMul", _dequantized(t, v["x"], x), _qdq_weight(t, w, 1)
        )
        feeds = {"float": real, "ort": {"x": x.q}, "qdq": real}
        expected = y if bias is None else y + bias
        if bias is not None:
            plain = builds["qdq"]
            builds["qdq"] = lambda t, v: t.op("Add", plain(t, v), _qdq_bias(t, bias, x, w))
        return Probed(work, feeds, builds, expected, _EXACT * 20)
    scale, zero_point = _output(row.output, y)
    builds["ort"] = lambda t, v: t.op(
        "QLinearMatMul",
        *(v["x"], x.scale, x.zero_point, w.q, w.scale.reshape(-1), w.zero_point),
        *(scale, zero_point),
    )
    builds["qdq"] = lambda t, v: _qdq_output(
        t, t.op("MatMul", _dequantized(t, v["x"], x), _qdq_weight(t, w, 1)), scale, zero_point
    )
    stored = _round(y, scale, zero_point, row.output)
    return Probed(
        work,
        {"float": real, "ort": {"x": x.q}, "qdq": real},
        builds,
        stored.real,
        _STEP,
        stored.parameters,
    )


def _qdq_bias(tape: Tape, bias: Array, x: _Tensor, w: _Tensor) -> ir.Value:
    """An int32 bias: a float one would turn the MatMul into a float Gemm (static-bias-in-qdq)."""
    scale = (x.scale * w.scale.reshape(-1)).astype(np.float32)
    q = np.rint(bias / scale).astype(np.int32)
    value: ir.Value = tape.op("DequantizeLinear", q, scale, np.zeros(len(q), np.int32), axis=0)
    return value


def _matmul_dynamic(
    row: Kernel,
    work: Work,
    x: Array,
    w: _Tensor,
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
        expected = ((q - 128) @ w.q.astype(np.float64)) * scale * w.scale if numbers else _NOTHING
        builds["ort"] = lambda t, v: _by_row(t, v["x"], w)
        builds["qdq"] = lambda t, v: _by_row_qdq(t, v["x"], w)
        builds["kernel"] = lambda t, v: _row_product(t, v["q"], v["scale"], w)
        feeds["kernel"] = {"q": q.astype(np.uint8), "scale": scale.astype(np.float32)}
        return Probed(work, feeds, builds, expected.astype(np.float32), _STEP)
    lo, hi = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((hi - lo) / 255)
    zero = np.clip(np.rint(-lo / step), 0, 255)
    q = np.clip(np.rint(x / step) + zero, 0, 255)
    expected = ((q - zero) @ w.q.astype(np.float64)) * step * w.scale if numbers else _NOTHING
    optional = [] if bias is None else [None, bias]
    builds["ort"] = lambda t, v: t.op(
        "DynamicQuantizeMatMul", v["x"], w.q, w.scale.reshape(-1), *optional, domain=_MS
    )

    def qdq(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        quantized, scale, zero_point = tape.op("DynamicQuantizeLinear", values["x"], outputs=3)
        real = tape.op("DequantizeLinear", quantized, scale, zero_point)
        value: ir.Value = tape.op("MatMul", real, _qdq_weight(tape, w, 1))
        return value if bias is None else tape.op("Add", value, bias)

    builds["qdq"] = qdq
    if bias is not None:
        expected = expected + bias
    return Probed(work, feeds, builds, expected.astype(np.float32), _STEP)


def _by_row(tape: Tape, x: ir.Value, w: _Tensor) -> ir.Value:
    return _row_product(tape, *quantize_by_row(tape, x), w)


def _by_row_qdq(tape: Tape, x: ir.Value, w: _Tensor) -> ir.Value:
    q, scale = quantize_by_row(tape, x)
    one, middle = np.asarray(1, np.float32), np.asarray(128, np.uint8)
    real = tape.op("Mul", tape.op("DequantizeLinear", q, one, middle), scale)
    value: ir.Value = tape.op("MatMul", real, _qdq_weight(tape, w, 1))
    return value


def _row_product(tape: Tape, q: ir.Value, scale: ir.Value, w: _Tensor) -> ir.Value:
    middle = np.asarray(128, np.uint8)
    value: ir.Value = tape.op(
        "MatMulIntegerToFloat", q, w.q, scale, w.scale.reshape(-1), middle, domain=_MS
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
        domain=_MS,
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

    expected = x.astype(np.float64) @ real if numbers else _NOTHING
    if bias is not None:
        expected = expected + bias
    builds: dict[str, Build] = {
        "float": lambda t, v: t.op("MatMul", v["x"], real),
        "ort": ort,
        "qdq": qdq,
    }
    feeds = {form: {"x": x} for form in builds}
    return Probed(work, feeds, builds, expected.astype(np.float32), _ROUNDED)


def _conv(
    row: Kernel, target: Target, shape: ConvShape, rng: np.random.Generator, numbers: bool
) -> Probed:
    spec, weight = row.inputs[0], row.inputs[1]
    assert spec is not None
    assert weight is not None
    per_group = shape.channels // shape.group
    x = _activation(spec, (shape.batch, shape.channels, shape.size, shape.size), rng)
    w = _weight(
        target.weight_spec(weight), (shape.filters, per_group, shape.kernel, shape.kernel), 0, rng
    )
    out = (shape.size - 1) // shape.stride + 1
    pixels = shape.batch * out * out
    work = Work(
        pixels * w.q.size,
        pixels,
        max(x.q.size, pixels * shape.filters),
        _kind(shape),
    )
    attributes: dict[str, Any] = {
        "kernel_shape": [shape.kernel] * 2,
        "strides": [shape.stride] * 2,
        "pads": [shape.kernel // 2] * 4,
        "group": shape.group,
    }
    bias_scale = (x.scale * w.scale.reshape(-1)).astype(np.float32)
    bias = rng.integers(-1000, 1000, shape.filters).astype(np.int32)
    real_bias = (bias * bias_scale).astype(np.float32)
    product = _convolve(x.real, w.real, shape) if numbers else _NOTHING
    expected = product + real_bias.reshape(1, -1, 1, 1)
    output = row.output or spec
    scale, zero_point = _output(output, expected)
    builds: dict[str, Build] = {
        "float": lambda t, v: t.op("Conv", v["x"], w.real, real_bias, **attributes),
        "ort": lambda t, v: t.op(
            "QLinearConv",
            *(v["x"], x.scale, x.zero_point, w.q, w.scale.reshape(-1), w.zero_point),
            *(scale, zero_point, bias),
            **attributes,
        ),
        "qdq": lambda t, v: _qdq_output(
            t,
            t.op(
                "Conv",
                _dequantized(t, v["x"], x),
                _qdq_weight(t, w, 0),
                t.op("DequantizeLinear", bias, bias_scale, np.zeros_like(bias), axis=0),
                **attributes,
            ),
            scale,
            zero_point,
        ),
    }
    feeds = {"float": {"x": x.real}, "ort": {"x": x.q}, "qdq": {"x": x.real}}
    stored = _round(expected, scale, zero_point, output)
    return Probed(work, feeds, builds, stored.real, _STEP, stored.parameters)


def _kind(shape: ConvShape) -> str:
    if shape.group > 1:
        return "depthwise"
    if shape.channels <= 4:
        return "stem"
    return "pointwise" if shape.kernel == 1 else "dense"


def _convolve(x: Array, w: Array, shape: ConvShape) -> npt.NDArray[np.float32]:
    """The convolution by its definition: windows times filters, summed."""
    pad = shape.kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: shape.stride, :: shape.stride]
    split = windows.reshape(x.shape[0], shape.group, -1, *windows.shape[2:])
    filters = w.reshape(shape.group, -1, *w.shape[1:])
    product = np.einsum("bgchwij,gfcij->bgfhw", split, filters, optimize=True)
    out = product.reshape(x.shape[0], -1, *windows.shape[2:4])
    return np.asarray(out, dtype=np.float32)


def _gather(size: tuple[int, ...], rng: np.random.Generator) -> Probed:
    count, entries, width = size
    w = _weight(QSpec.parse("s8c@0"), (entries, width), 0, rng)
    ids = rng.integers(0, entries, count).astype(np.int64)

    def by_row(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        rows = tape.op("Cast", tape.op("Gather", w.q, values["ids"]), to=int(ir.DataType.FLOAT))
        value: ir.Value = tape.op("Mul", rows, tape.op("Gather", w.scale, values["ids"]))
        return value

    # standard operators in both forms: DequantizeLinear would dequantize the whole table
    builds: dict[str, Build] = {
        "float": lambda t, v: t.op("Gather", w.real, v["ids"]),
        "ort": by_row,
        "qdq": by_row,
    }
    work = Work(0, count, count * width)
    feeds = {form: {"ids": ids} for form in builds}
    return Probed(work, feeds, builds, w.real[ids], _EXACT)


def _pointwise(row: Kernel, size: tuple[int, ...], rng: np.random.Generator) -> Probed:
    spec, output = row.inputs[0], row.output
    assert spec is not None
    assert output is not None
    count = 2 if row.op in ("Add", "Mul", "Concat") else 1
    xs = [_activation(spec, size, rng) for _ in range(count)]
    definition = _DEFINITIONS[row.op]
    expected = definition.compute([x.real for x in xs])
    scale, zero_point = _output(output, expected)
    names = [f"x{index}" for index in range(count)]

    def operands(values: Mapping[str, ir.Value]) -> list[tuple[ir.Value, _Tensor]]:
        return [(values[name], x) for name, x in zip(names, xs, strict=True)]

    def ort(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        flat: list[Any] = [item for v, x in operands(values) for item in (v, x.scale, x.zero_point)]
        after: list[Any] = [scale, zero_point]
        inputs = after + flat if row.op == "Concat" else flat + after
        kind = row.runtime_op.rpartition(":")[2]
        value: ir.Value = tape.op(kind, *inputs, domain=_MS, **definition.attributes)
        return value

    builds: dict[str, Build] = {
        "float": lambda t, v: t.op(row.op, *(v[name] for name in names), **definition.attributes),
        "ort": ort,
        "qdq": lambda t, v: _qdq_output(
            t,
            t.op(row.op, *(_dequantized(t, a, x) for a, x in operands(v)), **definition.attributes),
            scale,
            zero_point,
        ),
    }
    real = {name: x.real for name, x in zip(names, xs, strict=True)}
    stored = {name: x.q for name, x in zip(names, xs, strict=True)}
    work = Work(0, size[0], max(expected.size, xs[0].q.size))
    wanted = _round(expected, scale, zero_point, output)
    feeds = {"float": real, "ort": stored, "qdq": real}
    return Probed(work, feeds, builds, wanted.real, _STEP, wanted.parameters)


@dataclasses.dataclass(frozen=True)
class _Definition:
    compute: Callable[[list[Array]], Array]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _average_2x2(x: Array) -> Array:
    n, c, h, w = x.shape
    return np.asarray(x.reshape(n, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5)))


_DEFINITIONS: Mapping[str, _Definition] = {
    "Add": _Definition(lambda xs: xs[0] + xs[1]),
    "Mul": _Definition(lambda xs: xs[0] * xs[1]),
    "Sigmoid": _Definition(lambda xs: 1 / (1 + np.exp(-xs[0]))),
    "LeakyRelu": _Definition(lambda xs: np.where(xs[0] < 0, 0.1 * xs[0], xs[0]), {"alpha": 0.1}),
    "AveragePool": _Definition(
        lambda xs: _average_2x2(xs[0]), {"kernel_shape": [2, 2], "strides": [2, 2]}
    ),
    "GlobalAveragePool": _Definition(lambda xs: xs[0].mean(axis=(2, 3), keepdims=True)),
    "Concat": _Definition(lambda xs: np.concatenate(xs, axis=1), {"axis": 1}),
}


def _integer_product(x: _Tensor, w: _Tensor) -> npt.NDArray[np.float32]:
    a = x.q.astype(np.float64) - float(x.zero_point)
    # float64 holds every sum of 8-bit products exactly
    return np.asarray((a @ w.q.astype(np.float64)) * x.scale * w.scale, dtype=np.float32)


def _round(y: Array, scale: Array, zero_point: Array, spec: QSpec) -> _Tensor:
    q = np.clip(np.rint(y / scale) + zero_point.astype(np.int64), spec.qmin, spec.qmax)
    return _Tensor(q, scale, zero_point)

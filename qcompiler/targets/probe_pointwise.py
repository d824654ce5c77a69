"""Elementwise operators, pools and tables in the forms that a probe compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.schemes import QSpec
from qcompiler.targets.cost import Work
from qcompiler.targets.probe_tensors import (
    EXACT,
    MICROSOFT,
    STEP,
    Array,
    Build,
    Probed,
    Stored,
    dequantized,
    output_parameters,
    qdq_output,
    random_activation,
    random_weight,
    rounded,
)
from qcompiler.targets.schema import Kernel

__all__ = ["gather", "gather_blocks", "pointwise"]


def gather(size: tuple[int, ...], rng: np.random.Generator) -> Probed:
    """Rows of a table of int8, ``(ids, rows, width)``."""
    count, entries, width = size
    w = random_weight(QSpec.parse("s8c@0"), (entries, width), 0, rng)
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
    return Probed(work, feeds, builds, w.real[ids], EXACT)


def gather_blocks(size: tuple[int, ...], rng: np.random.Generator, group_size: int) -> Probed:
    """Rows of a table of 8-bit blocks, which the operator dequantizes itself."""
    count, entries, width = size
    group = min(group_size, width)
    codes = rng.integers(0, 256, (entries, width // group, group)).astype(np.uint8)
    scale = rng.uniform(0.5, 1.0, (*codes.shape[:2], 1)).astype(np.float32)
    real = ((codes.astype(np.float32) - 128) * scale).reshape(entries, width)
    ids = rng.integers(0, entries, count).astype(np.int64)

    def by_block(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        rows: ir.Value = tape.op(
            "GatherBlockQuantized",
            *(codes, values["ids"], scale),
            domain=MICROSOFT,
            bits=8,
            block_size=group,
            gather_axis=0,
            quantize_axis=2,
        )
        flat: ir.Value = tape.op("Reshape", rows, np.array([count, width], np.int64))
        return flat

    builds: dict[str, Build] = {
        "float": lambda t, v: t.op("Gather", real, v["ids"]),
        "ort": by_block,
    }
    work = Work(0, count, count * width)
    feeds = {form: {"ids": ids} for form in builds}
    return Probed(work, feeds, builds, real[ids], EXACT)


def pointwise(row: Kernel, size: tuple[int, ...], rng: np.random.Generator) -> Probed:
    """An operator whose operands and result are stored in low precision."""
    spec, output = row.inputs[0], row.output
    assert spec is not None
    assert output is not None
    count = 2 if row.op in ("Add", "Mul", "Concat") else 1
    xs = [random_activation(spec, size, rng) for _ in range(count)]
    definition = _DEFINITIONS[row.op]
    expected = definition.compute([x.real for x in xs])
    scale, zero_point = output_parameters(output, expected)
    names = [f"x{index}" for index in range(count)]

    def operands(values: Mapping[str, ir.Value]) -> list[tuple[ir.Value, Stored]]:
        return [(values[name], x) for name, x in zip(names, xs, strict=True)]

    def ort(tape: Tape, values: Mapping[str, ir.Value]) -> ir.Value:
        flat: list[Any] = [item for v, x in operands(values) for item in (v, x.scale, x.zero_point)]
        after: list[Any] = [scale, zero_point]
        inputs = after + flat if row.op == "Concat" else flat + after
        kind = row.runtime_op.rpartition(":")[2]
        value: ir.Value = tape.op(kind, *inputs, domain=MICROSOFT, **definition.attributes)
        return value

    builds: dict[str, Build] = {
        "float": lambda t, v: t.op(row.op, *(v[name] for name in names), **definition.attributes),
        "ort": ort,
        "qdq": lambda t, v: qdq_output(
            t,
            t.op(row.op, *(dequantized(t, a, x) for a, x in operands(v)), **definition.attributes),
            scale,
            zero_point,
        ),
    }
    real = {name: x.real for name, x in zip(names, xs, strict=True)}
    stored = {name: x.q for name, x in zip(names, xs, strict=True)}
    work = Work(0, size[0], max(expected.size, xs[0].q.size))
    wanted = rounded(expected, scale, zero_point, output)
    feeds = {"float": real, "ort": stored, "qdq": real}
    return Probed(work, feeds, builds, wanted.real, STEP, wanted.parameters)


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

"""One-node models of each row: in float, in ONNX Runtime's operators, and as Q/DQ.

With each come the numbers it must give, computed in numpy by the definition of the operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.targets.cost import Work
from qcompiler.targets.probe_conv import ConvShape, conv
from qcompiler.targets.probe_float8 import float8_layer
from qcompiler.targets.probe_matmul import matmul, quantize_by_row
from qcompiler.targets.probe_pointwise import gather, gather_blocks, pointwise
from qcompiler.targets.probe_tensors import EXACT, MICROSOFT, Array, Build, Probed
from qcompiler.targets.schema import Kernel, Target

__all__ = ["Array", "Build", "ConvShape", "Probed", "model_of", "probed_layer", "quantize_by_row"]

_OPSET = 21


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
        opset_imports={"": opset, MICROSOFT: 1},
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
        return conv(row, target, size, rng, numbers)
    if row.op == "MatMul":
        return matmul(row, target, size, rng, bits, numbers)
    if row.op == "Gather":
        table = row.inputs[0]
        if table is not None and table.group_size is not None:
            return gather_blocks(size, rng, table.group_size)
        return gather(size, rng)
    return pointwise(row, size, rng)


def _float8(row: Kernel, size: tuple[int, ...] | ConvShape, rng: np.random.Generator) -> Probed:
    """A layer of 8-bit floats, of one size for convolutions."""
    rows, inner, columns = (9, 64, 48) if isinstance(size, ConvShape) else size
    work = Work(rows * inner * columns, rows, max(rows * inner, rows * columns))
    builds, x, expected = float8_layer(row, rows, inner, columns, rng)
    feeds = {form: {"x": x} for form in builds}
    return Probed(work, feeds, builds, expected, EXACT * 20)

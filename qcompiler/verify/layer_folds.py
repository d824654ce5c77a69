"""Fold into a float model what was folded into the constants of its quantized form.

SmoothQuant and its kind divide a value by factors per channel and multiply what reads it: exact in
float, but the values in between are others than the user's. To hold rounding alone against float,
the float model gets the same factors: constants that stayed float are taken from the quantized
model, those of rounded weights are estimated, which averages rounding out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import add_initializer, constant
from qcompiler.ir.walk import LINEAR, op_name
from qcompiler.verify.layer_shares import floats_of

__all__ = ["take_folds"]

Wide = npt.NDArray[np.float64]

# Rounding to 8 bits leaves estimates within a fraction of this; factors of use are larger.
_FOLDED = 0.03
_ROUNDS = 8


def take_folds(reference: ir.Model, spelled: ir.Model) -> None:
    """Edit constants of ``reference`` so that it computes what ``spelled`` rounds."""
    others = {node.name: node for node in spelled.graph}
    graph = reference.graph
    for node in list(graph):
        other = others.get(node.name)
        if other is None or op_name(other) != op_name(node):
            continue
        if node.op_type == "MatMul":
            _fold_weight(graph, node, other)
        elif node.op_type not in LINEAR and not _is_bias(node):
            _take_constants(graph, node, other)


def _is_bias(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs if value is not None]
    return node.op_type == "Add" and any(p is not None and p.op_type in LINEAR for p in producers)


def _take_constants(graph: ir.Graph, node: ir.Node, other: ir.Node) -> None:
    for index, (ours, theirs) in enumerate(zip(node.inputs, other.inputs, strict=False)):
        a, b = constant(ours), constant(theirs)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            continue
        if a.dtype.kind == "f" and a.size > 1 and not np.array_equal(a, b):
            assert ours is not None
            node.replace_input_with(index, add_initializer(graph, f"{ours.name}/folded", b))


def _fold_weight(graph: ir.Graph, node: ir.Node, other: ir.Node) -> None:
    weight, rounded = constant(node.inputs[1]), floats_of(other.inputs[1])
    if weight is None or rounded is None or weight.ndim != 2 or weight.shape != rounded.shape:
        return
    if not weight.size:
        return
    rows, columns = _factors(weight.astype(np.float64), rounded.astype(np.float64))
    if rows is None or _has_own_mul(node, other):
        rows = np.ones(weight.shape[0])
    if columns is None and np.all(rows == 1.0):
        return
    values = node.inputs[1]
    assert values is not None
    folded = weight * rows[:, None]
    if columns is not None:
        columns = _fold_bias(graph, node, other, columns)
        folded = folded * columns
    name = f"{values.name}/folded"
    node.replace_input_with(1, add_initializer(graph, name, folded.astype(weight.dtype)))


def _factors(weight: Wide, rounded: Wide) -> tuple[Wide | None, Wide | None]:
    """Factors of rows and columns with ``rounded ~ rows * weight * columns``; None where all 1.

    Alternating least squares; columns have a geometric mean of 1.
    """
    rows, columns = np.ones(weight.shape[0]), np.ones(weight.shape[1])
    if np.linalg.norm(rounded - weight) < _FOLDED * np.linalg.norm(weight):
        return None, None
    for _ in range(_ROUNDS):
        rows = _ratio(rounded, weight * columns, axis=1)
        columns = _ratio(rounded, weight * rows[:, None], axis=0)
        mean = np.exp(np.log(columns).mean())
        rows, columns = rows * mean, columns / mean
    residual = np.linalg.norm(rounded - rows[:, None] * weight * columns)
    if residual > 0.2 * np.linalg.norm(rounded):
        return None, None  # not the same weight, or of very few bits
    if np.abs(columns - 1.0).max() < _FOLDED:
        columns, rows = np.ones_like(columns), _ratio(rounded, weight, axis=1)
        return (None if np.abs(rows - 1.0).max() < _FOLDED else rows), None
    return rows, columns


def _ratio(target: Wide, source: Wide, axis: int) -> Wide:
    power = (source * source).sum(axis=axis)
    found = (target * source).sum(axis=axis) / np.where(power > 0.0, power, 1.0)
    ratio: Wide = np.where((power > 0.0) & (found > 0.0), found, 1.0)
    return ratio


def _has_own_mul(node: ir.Node, other: ir.Node) -> bool:
    """Whether the quantized layer reads through a Mul that the float one lacks: factors inside."""
    value = other.inputs[0]
    for _ in range(3):  # DQ, Q, Mul
        maker = None if value is None else value.producer()
        if maker is None:
            return False
        if maker.op_type == "Mul":
            ours = node.inputs[0].producer() if node.inputs[0] is not None else None
            return ours is None or ours.name != maker.name
        value = maker.inputs[0] if maker.inputs else None
    return False


def _fold_bias(graph: ir.Graph, node: ir.Node, other: ir.Node, columns: Wide) -> Wide:
    """Give the bias behind the factors; it also tells the one that weights leave open."""
    ours, theirs = _bias(node), _bias(other)
    if ours is None:
        return columns
    add, index, array = ours
    if theirs is not None and theirs[2].size == array.size:
        want, have = theirs[2].astype(np.float64).reshape(-1), array.reshape(-1) * columns
        power = float(have @ have)
        scale = float(want @ have) / power if power else 1.0
        columns = columns * (scale if scale > 0.0 else 1.0)
    value = add.inputs[index]
    assert value is not None
    folded = (array * columns).astype(array.dtype)
    add.replace_input_with(index, add_initializer(graph, f"{value.name}/folded", folded))
    return columns


def _bias(node: ir.Node) -> tuple[ir.Node, int, npt.NDArray[Any]] | None:
    for use in node.outputs[0].uses():
        if use.node.op_type == "Add":
            array = floats_of(use.node.inputs[1 - use.idx])
            if array is not None and array.ndim == 1:
                return use.node, 1 - use.idx, array
    return None

"""Put outliers into a model's activations without changing what it computes.

What large language models do by themselves (a few channels of normalized activations are some
sixty times as large as the others) is done here to a small model: gains and shifts of chosen
channels of each normalization are multiplied, and all who read the channels undo it. The float
model gives the same numbers; a range per tensor has to hold the outliers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["inject_outliers"]


def inject_outliers(
    model: ir.Model, *, channels: int = 8, factor: float = 60.0, seed: int = 0
) -> int:
    """Edit ``model`` in place; its outputs stay, up to rounding.

    For every LayerNormalization with constant gain that feeds a MatMul with a constant matrix:
    ``channels`` random channels are multiplied by ``factor``; rows of those matrices are divided
    by it; other readers (the residual) read through a Mul that divides.

    Args:
        model: An opened model with LayerNormalization nodes.
        channels: Outlier channels per normalization.
        factor: How much larger they become.
        seed: Of the choice of channels.

    Returns:
        How many normalizations were changed.
    """
    random, changed = np.random.default_rng(seed), 0
    matrices: dict[ir.Value, ir.Node] = {}
    for node in list(model.graph):
        if node.op_type != "LayerNormalization" or len(node.inputs) < 3:
            continue
        gain, shift = _array(node.inputs[1]), _array(node.inputs[2])
        value = node.outputs[0]
        linear = [use.node for use in value.uses() if use.idx == 0 and _is_linear(use.node)]
        if gain is None or shift is None or not linear:
            continue
        factors = np.ones(gain.shape, gain.dtype)
        factors[random.choice(gain.size, channels, replace=False)] = factor
        others = [(use.node, use.idx) for use in value.uses() if use.node not in linear]
        for index, array in ((1, gain), (2, shift)):
            node.replace_input_with(
                index, _constant(model, f"{node.name}/{index}", array * factors)
            )
        for reader in linear:
            matrix = reader.inputs[1]
            assert matrix is not None
            if matrices.setdefault(matrix, node) is not node:
                raise ValueError(f"%{matrix.name} is read behind two normalizations")
            weight = _array(matrix)
            assert weight is not None
            divided = _constant(model, f"{reader.name}/divided", weight / factors[:, None])
            reader.replace_input_with(1, divided)
        if others or value.is_graph_output():
            _undo(model, node, others, factors)
        changed += 1
    return changed


def _undo(
    model: ir.Model,
    node: ir.Node,
    readers: list[tuple[ir.Node, int]],
    factors: npt.NDArray[Any],
) -> None:
    value = node.outputs[0]
    inverse = _constant(model, f"{node.name}/inverse", 1.0 / factors)
    undo = ir.node("Mul", [value, inverse], name=f"{node.name}/undo")
    undo.outputs[0].name = f"{node.name}/undone"
    undo.outputs[0].shape, undo.outputs[0].type = value.shape, value.type
    model.graph.insert_after(node, undo)
    for reader, index in readers:
        reader.replace_input_with(index, undo.outputs[0])
    if value.is_graph_output():
        name = value.name
        place = list(model.graph.outputs).index(value)
        model.graph.outputs[place] = undo.outputs[0]
        value.name, undo.outputs[0].name = f"{name}/outliers", name


def _is_linear(node: ir.Node) -> bool:
    array = _array(node.inputs[1]) if node.op_type == "MatMul" else None
    return array is not None and array.ndim == 2


def _array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _constant(model: ir.Model, name: str, array: npt.NDArray[Any]) -> ir.Value:
    array = array.astype(np.float32)
    value = ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    model.graph.register_initializer(value)
    return value

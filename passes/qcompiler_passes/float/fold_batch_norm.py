"""Fold what scales and shifts channels into the Conv or linear layer before it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import (
    Tape,
    add_initializer,
    constant,
    has_one_use,
    remove_dead,
    replace,
)
from qcompiler.ir.provenance import inherit
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["FoldBatchNorm"]

Array = npt.NDArray[np.generic]
Wide = npt.NDArray[np.float64]

_SCALING = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
_CONVS = ("Conv", "ConvTranspose")


@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """BatchNormalization, and Mul, Div, Add or Sub by a constant per channel, go into the weights.

    Behind Conv, ConvTranspose, and MatMul with an optional Add of a bias (there the operand has to
    be a matrix, because BatchNormalization counts channels along axis 1). With
    ``k = gamma / sqrt(var + eps)``, one factor per channel (Ioffe and Szegedy 2015, section 3.1):
    ``w' = k w`` and ``b' = k (b - mean) + beta``. Factors are computed in float64. A weight shared
    with another node is left alone, for it would be copied; so is a fold that overflows the type.

    Given:  ``%a = Conv(%x, %w);  %y = BatchNormalization(%a, %gamma, %beta, %mean, %var)``
    Result: ``%y = Conv(%x, %w1, %b1)``
    """

    name: ClassVar[str] = "fold-batch-norm"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Each node in order; a chain of several folds link by link. The main graph only."""
        modified = False
        while _walk(model.graph):
            modified = True
            remove_dead(model)  # the constants that went into the weights
        return PassResult(modified)


def _walk(graph: ir.Graph) -> bool:
    changed = False
    for node in list(graph):
        if node.graph is not None and node.domain == "" and node.op_type in _SCALING:
            changed |= _fold(graph, node)
    return changed


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer that can take a factor and a shift per output channel.

    Attributes:
        nodes: Its nodes in graph order: the Conv, or MatMul and perhaps Add.
        weight: Weight as it is.
        bias: ``[out]`` in float64, zeros when there is none.
        out: Output channels.
    """

    nodes: tuple[ir.Node, ...]
    weight: Array
    bias: Wide
    out: int

    @property
    def is_conv(self) -> bool:
        return self.nodes[0].op_type in _CONVS


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    x, constants = _operand(node)
    if x is None or not has_one_use(x):
        return False
    layer = _layer(x)
    if layer is None or not all(part.graph is graph for part in layer.nodes):
        return False
    if node.op_type == "Add" and layer.nodes[-1].op_type == "MatMul":
        return False  # that is the bias, and the canonical form already
    found = _affine(node, constants, layer, x)
    if found is None:
        return False
    factor, shift = found
    with np.errstate(over="ignore"):
        weight = _scaled_weight(layer, factor)
        bias = (layer.bias * factor + shift).astype(layer.weight.dtype)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return False
    _write(graph, layer, node, weight, bias)
    return True


def _operand(node: ir.Node) -> tuple[ir.Value | None, list[Array]]:
    """The activation and the constants of a node that may be folded."""
    values = [constant(value) for value in node.inputs]
    if node.op_type == "BatchNormalization":
        training = node.attributes.get("training_mode")
        if training is not None and training.as_int():
            return None, []
        index = 0
    else:
        index = 1 if values[0] is not None and node.op_type in ("Mul", "Add") else 0
    rest = [array for place, array in enumerate(values) if place != index]
    if any(array is None for array in rest):
        return None, []
    return node.inputs[index], [array for array in rest if array is not None]


def _layer(x: ir.Value) -> _Layer | None:
    last = x.producer()
    if last is None or last.domain:
        return None
    if last.op_type in _CONVS:
        return _conv_layer(last)
    shift = None
    nodes: tuple[ir.Node, ...] = (last,)
    if last.op_type == "Add":
        shift = constant(last.inputs[1])
        left = last.inputs[0]
        first = None if left is None else left.producer()
        if shift is None or left is None or first is None or not has_one_use(left):
            return None
        nodes, last = (first, last), first
    if last.op_type != "MatMul" or last.domain or not _owned(last.inputs[1]):
        return None
    weight = constant(last.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        return None
    out = weight.shape[1]
    if shift is not None and shift.shape != (out,):
        return None
    bias = np.zeros(out) if shift is None else shift.astype(np.float64)
    return _Layer(nodes, weight, bias, out)


def _conv_layer(node: ir.Node) -> _Layer | None:
    weight = constant(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(given)
    if weight is None or weight.dtype.kind != "f" or not _owned(node.inputs[1]):
        return None
    if given is not None and bias is None:
        return None
    groups = _groups(node)
    out = weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * groups
    return _Layer((node,), weight, np.zeros(out) if bias is None else bias.astype(np.float64), out)


def _owned(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _groups(node: ir.Node) -> int:
    attr = node.attributes.get("group")
    return 1 if attr is None else attr.as_int()


def _affine(
    node: ir.Node, constants: list[Array], layer: _Layer, x: ir.Value
) -> tuple[Wide, Wide] | None:
    """Factor and shift per channel, each ``[out]``, or None when the node is no such thing."""
    ones, zeros = np.ones(layer.out), np.zeros(layer.out)
    if node.op_type == "BatchNormalization":
        rank = None if x.shape is None else x.shape.rank()
        if not layer.is_conv and rank != 2:
            return None
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return None
        gamma, beta, mean, var = (array.astype(np.float64) for array in constants)
        epsilon = node.attributes.get("epsilon")
        factor = gamma / np.sqrt(var + (1e-5 if epsilon is None else epsilon.as_float()))
        return factor, beta - mean * factor
    channels = _per_channel(constants[0], layer)
    if channels is None:
        return None
    if node.op_type == "Mul":
        return channels, zeros
    if node.op_type == "Div":
        return (1.0 / channels, zeros) if channels.all() else None
    return ones, channels if node.op_type == "Add" else -channels


def _per_channel(array: Array, layer: _Layer) -> Wide | None:
    """The constant as ``[out]`` when it only varies along the channels of the layer's output."""
    rank = layer.weight.ndim if layer.is_conv else 2
    if array.ndim > rank or array.dtype.kind != "f":
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    wide = array.astype(np.float64)
    # behind a MatMul of any rank channels are the last axis, so a leading axis must be one
    if array.size == 1:
        return np.full(layer.out, wide.reshape(()))
    if array.size != layer.out or shape[1] != layer.out:
        return None
    return wide.reshape(-1)


def _scaled_weight(layer: _Layer, factor: Wide) -> Array:
    weight = layer.weight
    wide = weight.astype(np.float64)
    node = layer.nodes[0]
    if node.op_type == "Conv":
        scaled = wide * factor.reshape(-1, *[1] * (weight.ndim - 1))
    elif node.op_type == "MatMul":
        scaled = wide * factor
    else:  # ConvTranspose: [in, out / groups, ...], the inputs of a group stand together
        groups = _groups(node)
        split = wide.reshape(groups, -1, *weight.shape[1:])
        shaped = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        scaled = (split * shaped).reshape(weight.shape)
    return scaled.astype(weight.dtype)


def _write(graph: ir.Graph, layer: _Layer, node: ir.Node, weight: Array, bias: Array) -> None:
    """Rebind the layer's own constants, so that they keep the user's names; drop ``node``."""
    first, last = layer.nodes[0], layer.nodes[-1]
    _rebind(graph, first, 1, weight, f"{first.name}/weight")
    inherit([first], [node])
    if layer.is_conv:
        first.resize_inputs(3)
        _rebind(graph, first, 2, bias, f"{first.name}/bias")
    elif last is first:
        tape = Tape(graph, node.name or node.op_type)
        y = tape.op("Add", first.outputs[0], bias)
        replace(graph, [node], tape.nodes, {node.outputs[0]: y})
        return
    else:
        _rebind(graph, last, 1, bias, f"{last.name}/bias")
        inherit([last], [node])
    replace(graph, [node], [], {node.outputs[0]: last.outputs[0]})


def _rebind(graph: ir.Graph, node: ir.Node, index: int, array: Array, name: str) -> None:
    value = node.inputs[index]
    if value is not None and value.is_initializer() and _owned(value):
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
    else:
        node.replace_input_with(index, add_initializer(graph, name, array))

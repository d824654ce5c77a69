"""Consecutive linear layers with nothing between them but what keeps factors by channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import add_initializer, constant, has_one_use

__all__ = [
    "Linear", "Pair", "find_pairs", "no_pairs", "set_constant", "shift_bias", "takes_bias",
]  # fmt: skip

Wide = npt.NDArray[np.float64]

# f(s x) = s f(x) for s > 0, channel by channel
_HOMOGENEOUS = frozenset(
    {
        "AveragePool",
        "Dropout",
        "GlobalAveragePool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Relu",
    }
)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A Conv or MatMul with a private constant weight, and its bias.

    Attributes:
        node: The node.
        end: The node whose output is the layer's: the Add of the bias of a MatMul, else ``node``.
        bias: Who reads the bias as which input; None for none.
        groups: Groups of a Conv; 1.
    """

    node: ir.Node
    end: ir.Node
    bias: tuple[ir.Node, int] | None
    groups: int

    @property
    def axis(self) -> int:
        """Axis of the channels in activations."""
        return 1 if self.node.op_type == "Conv" else -1

    def weight(self) -> Wide:
        """``[groups, outputs / groups, inputs / groups, taps]``."""
        array = constant(self.node.inputs[1])
        assert array is not None
        wide = array.astype(np.float64)
        if self.node.op_type != "Conv":
            return wide.T[None, :, :, None]
        return wide.reshape(self.groups, len(wide) // self.groups, wide.shape[1], -1)

    def put(self, graph: ir.Graph, weight: Wide) -> None:
        """Store a weight in the form of :meth:`weight`."""
        array = constant(self.node.inputs[1])
        assert array is not None
        turned = weight[0, :, :, 0].T if self.node.op_type != "Conv" else weight
        set_constant(graph, self.node, 1, turned.reshape(array.shape).astype(array.dtype))


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers of which only the second reads the channels that the first makes.

    Attributes:
        first: Makes the channels.
        second: Reads them.
        between: The nodes between them, in order.
        cap: Upper bound of a Clip from 0 between them; None when nothing caps.
        capped: What the Clip gives.
    """

    first: Linear
    second: Linear
    between: tuple[ir.Node, ...]
    cap: float | None
    capped: ir.Value | None

    @property
    def name(self) -> str:
        """For the report."""
        return f"{self.first.node.name} -> {self.second.node.name}"


def find_pairs(graph: ir.Graph) -> Iterator[Pair]:
    """All pairs, in graph order."""
    for node in graph:
        first = _linear(node)
        pair = _behind(first) if first is not None else None
        if pair is not None:
            yield pair


def no_pairs(key: str) -> Diagnostic:
    """What to tell of a key that is about pairs where there is none."""
    message = "has no effect: the model has no layer whose channels one other layer alone reads"
    return Diagnostic(Code.KEY_UNUSED, key, message)


def takes_bias(layer: Linear) -> bool:
    """Whether there is a place for one: a Conv has it always."""
    return layer.bias is not None or layer.node.op_type == "Conv"


def shift_bias(graph: ir.Graph, layer: Linear, shift: Wide) -> None:
    """Add ``[outputs]`` to the bias of a layer that :func:`takes_bias`, or make it one."""
    node = layer.node
    # looked up anew: an earlier shift may have made it
    node_of_bias, index = layer.bias or (node, 2)
    old = constant(node_of_bias.inputs[index]) if index < len(node_of_bias.inputs) else None
    if old is not None:
        changed = (old.astype(np.float64) + shift).astype(old.dtype)
        set_constant(graph, node_of_bias, index, changed)
        return
    weight = constant(node.inputs[1])
    assert weight is not None
    node.resize_inputs(3)
    bias = add_initializer(graph, f"{node.name}/bias", shift.astype(weight.dtype))
    node.replace_input_with(2, bias)


def set_constant(
    graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[np.generic]
) -> None:
    """Give ``node`` the constant; one that others read too is copied."""
    value = node.inputs[index]
    assert value is not None
    if value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        value.const_value = ir.tensor(array, name=value.name)
        return
    node.replace_input_with(index, add_initializer(graph, f"{value.name}/equal", array))


def _linear(node: ir.Node) -> Linear | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "MatMul"):
        return None
    weight = node.inputs[1]
    array = constant(weight)
    if weight is None or array is None or array.dtype not in (np.float32, np.float16, np.float64):
        return None
    if len(weight.uses()) > 1 or weight.is_graph_output() or not np.isfinite(array).all():
        return None
    if node.op_type == "Conv":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and constant(bias) is None:
            return None
        place = None if bias is None else (node, 2)
        return Linear(node, node, place, node.attributes.get_int("group", 1))
    if array.ndim != 2:
        return None
    add = _only_reader(node.outputs[0])
    if add is not None and add.op_type == "Add":
        for index in (0, 1):
            vector = constant(add.inputs[index])
            if vector is not None and vector.shape == (array.shape[1],):
                return Linear(node, add, (add, index), 1)
    return Linear(node, node, None, 1)


def _only_reader(value: ir.Value) -> ir.Node | None:
    if not has_one_use(value) or value.is_graph_output():
        return None
    return next(iter(value.uses())).node


def _behind(first: Linear) -> Pair | None:
    value = first.end.outputs[0]
    between: list[ir.Node] = []
    cap, capped = None, None
    while True:
        node = _only_reader(value)
        if node is None or node.domain not in ("", "ai.onnx") or node.inputs[0] is not value:
            return None
        second = _linear(node)
        if second is not None:
            suits = second.axis == first.axis and _channels(first) == _inputs(second)
            return Pair(first, second, tuple(between), cap, capped) if suits else None
        if node.op_type == "Clip":
            bound = _cap(node)
            if bound is None or cap is not None:
                return None
            cap, capped = bound, node.outputs[0]
        elif not _keeps(node, first.axis):
            return None
        between.append(node)
        value = node.outputs[0]


def _keeps(node: ir.Node, axis: int) -> bool:
    if any(out.uses() for out in node.outputs[1:]):
        return False
    if node.op_type == "Pad":
        return _pads_zeros(node, axis)
    if node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool"):
        return axis == 1
    return node.op_type in _HOMOGENEOUS


def _pads_zeros(node: ir.Node, axis: int) -> bool:
    """Whether only places are added, with zeros: a factor of a channel has no say in them."""
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return False
    if node.attributes.get_string("mode", "constant") != "constant" or axis != 1:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        fill = constant(node.inputs[2])
        if fill is None or fill.any():
            return False
    return not pads.reshape(2, -1)[:, :2].any()


def _cap(node: ir.Node) -> float | None:
    """The upper bound of a Clip whose lower bound is 0."""
    bounds = [constant(value) for value in node.inputs[1:3]]
    if len(bounds) < 1 or bounds[0] is None or bounds[0].size != 1 or float(bounds[0].item()):
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return float("inf")
    hi = bounds[1]
    if hi is None or hi.size != 1 or not float(hi.item()) > 0:
        return None
    return float(hi.item())


def _channels(layer: Linear) -> int:
    array = constant(layer.node.inputs[1])
    assert array is not None
    return int(array.shape[0] if layer.node.op_type == "Conv" else array.shape[1])


def _inputs(layer: Linear) -> int:
    array = constant(layer.node.inputs[1])
    assert array is not None
    if layer.node.op_type == "Conv":
        return int(array.shape[1]) * layer.groups
    return int(array.shape[0])

"""Keep one of each constant and one of each computation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import replace
from qcompiler.ir.lazy import view_of
from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import all_graphs, body_graphs
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["ShareDuplicates"]

_SAMPLES = 64  # elements looked at before two tensors of one shape are compared whole
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


@dataclasses.dataclass(frozen=True)
class ShareDuplicates(Pass):
    """Merge equal initializers (bit for bit) and nodes with equal operator, attributes and inputs.

    Within each graph. Tied weights that a converter copied are tied again. The node that stays
    stands for those that went. Random operators and nodes with bodies are left alone, and so is a
    second node whose output is a graph output.

    Given:  ``%a = Shape(%x);  %b = Shape(%x);  %y = Concat(%a, %b)``
    Result: ``%a = Shape(%x);  %y = Concat(%a, %a)``
    """

    name: ClassVar[str] = "share-duplicates"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Initializers first, since they make inputs equal."""
        modified = False
        for graph in all_graphs(model):
            modified |= _share_initializers(graph)
            modified |= _share_nodes(graph)
        return PassResult(modified)


def _share_initializers(graph: ir.Graph) -> bool:
    kept: dict[Hashable, list[ir.Value]] = {}
    changed = False
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype is ir.DataType.STRING:
            continue
        alike = kept.setdefault(_sketch(tensor), [])
        twin = next((other for other in alike if _same(other.const_value, tensor)), None)
        if twin is None:
            alike.append(value)
            continue
        value.replace_all_uses_with(twin)
        del graph.initializers[name]
        changed = True
    return changed


def _sketch(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for equal tensors, cheap, and mostly different for others.

    A weight that is still in its file is only equal to itself: reading all would cost more.
    """
    if (view := view_of(tensor)) is not None:
        return view
    flat = tensor.numpy().reshape(-1)
    step = max(1, flat.size // _SAMPLES)
    sample = np.ascontiguousarray(flat[::step])
    return tensor.dtype, tensor.shape.numpy(), hashlib.blake2b(sample.tobytes()).digest()


def _same(one: ir.TensorProtocol | None, other: ir.TensorProtocol) -> bool:
    assert one is not None, "only constants are kept"
    if one is other or view_of(other) is not None:  # the sketch of a view is the view
        return True
    # bytes, not values: -0.0 is not 0.0, and NaN is itself
    return bool(np.array_equal(_bytes(one.numpy()), _bytes(other.numpy())))


def _bytes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _share_nodes(graph: ir.Graph) -> bool:
    kept: dict[Hashable, ir.Node] = {}
    changed = False
    for node in list(graph):
        if node.op_type in _RANDOM or next(body_graphs(node), None) is not None:
            continue
        twin = kept.setdefault(_node_key(node), node)
        if twin is node or any(output.is_graph_output() for output in node.outputs):
            continue
        inherit([twin], [node])
        replace(graph, [node], [], dict(zip(node.outputs, twin.outputs, strict=True)))
        changed = True
    return changed


def _node_key(node: ir.Node) -> Hashable:
    attributes = tuple(
        (name, _attribute_key(node.attributes[name])) for name in sorted(node.attributes)
    )
    present = tuple(bool(output.name) for output in node.outputs)
    return node.domain, node.op_type, node.overload, attributes, node.inputs, present


def _attribute_key(attr: ir.Attr) -> Hashable:
    if attr.type is ir.AttributeType.TENSOR:
        tensor = attr.as_tensor()
        return tensor.dtype, tensor.shape.numpy(), tensor.tobytes()
    if isinstance(attr.value, list | tuple):
        return attr.type, tuple(repr(item) for item in attr.value)
    return attr.type, repr(attr.value)

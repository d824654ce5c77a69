"""Groups of layers that read one activation and share factors, and where those would go."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit, module_of
from qcompiler.pipeline.contract import State
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.cost import Shapes
from qcompiler_passes.prepare.absorb import Edit, Fold, RefusedError, absorb, apply_edits, vector

__all__ = ["Group", "apply_factors", "find_groups", "group_of", "is_transformer"]

_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})
_BLOCK = re.compile(r"^.*?\b\d+(?=\.|$)")


@dataclasses.dataclass
class Group:
    """Planned linear layers that read one activation.

    Attributes:
        value: The activation, ``[..., channels]``.
        layers: MatMul nodes that the plan quantizes.
        activation: How they take the activation; None in float.
        weight: How they store their weight.
        gain_us: What quantizing them saves by the plan; None unknown.
        block: Block of the model, as ``encoder.layer.3``; "" unknown.
        fold: How the value comes out divided; None when it cannot, for ``refusal``.
        readers: Edits of the constants of all readers, for a folded value.
        refusal: Why it cannot be folded.
        insertable: Whether a Mul may stand before the layers.
    """

    value: ir.Value
    layers: list[ir.Node]
    activation: QSpec | None
    weight: QSpec
    gain_us: float | None
    block: str
    fold: Fold | None = None
    readers: list[Edit] = dataclasses.field(default_factory=list)
    refusal: str = ""
    insertable: bool = True

    @property
    def weights(self) -> list[npt.NDArray[np.float32]]:
        """``[channels, outputs]`` of each distinct weight."""
        distinct = dict.fromkeys(node.inputs[1] for node in self.layers)
        arrays = [constant(value) for value in distinct]
        return [np.asarray(array, np.float32) for array in arrays if array is not None]

    @property
    def own_edits(self) -> list[Edit]:
        """Edits of the group's own weights."""
        return [_rows(node, len(self.weights[0])) for node in self.layers]


def find_groups(graph: ir.Graph, plan: Plan, shapes: Shapes) -> Iterator[Group]:
    """The groups whose weights can be scaled, in graph order."""
    by_value: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if value is not None and _smoothable(node, plan.nodes.get(node.name or "")):
            by_value.setdefault(value, []).append(node)
    for value, nodes in by_value.items():
        decisions = [plan.nodes[node.name or ""] for node in nodes]
        first = decisions[0]
        if any(item.inputs[:2] != first.inputs[:2] for item in decisions):
            continue  # different forms of one activation: nothing that factors could suit
        activation, weight = first.inputs[0], first.inputs[1]
        assert activation is not None
        assert weight is not None
        gains = [item.gain_us for item in decisions]
        known = [gain for gain in gains if gain is not None]
        gain = sum(known) if len(known) == len(gains) else None
        group = Group(value, nodes, activation, weight, gain, _block(nodes[0]))
        _place(group, plan, shapes)
        yield group


def group_of(value: ir.Value, nodes: list[ir.Node], plan: Plan, shapes: Shapes) -> Group:
    """Layers of the weight-only scheme that read ``value``, and where factors for it can go."""
    weight = plan.nodes[nodes[0].name or ""].inputs[1]
    assert weight is not None
    group = Group(value, nodes, None, weight, None, _block(nodes[0]))
    _place(group, plan, shapes)
    return group


def apply_factors(
    graph: ir.Graph, state: State, group: Group, factors: npt.NDArray[np.float64]
) -> bool:
    """Multiply rows of the group's weights, and divide what they read.

    Where nothing before the layers absorbs the factors, a Mul stands there.

    Returns:
        False when a constant would overflow its type; then nothing was edited.
    """
    if group.fold is not None:
        return apply_edits(graph, [*group.readers, *group.fold.edits], factors)
    if not apply_edits(graph, group.own_edits, factors):
        return False
    value = group.value
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    name = f"{value.name}/scaled"
    tape = Tape(graph, name)
    scaled = tape.op("Mul", value, (1.0 / factors).astype(dtype), name=name)
    scaled.shape, scaled.type = value.shape, value.type
    first = next(node for node in graph if node in group.layers)
    graph.insert_before(first, tape.nodes)
    inherit(tape.nodes, [first])
    for node in group.layers:
        node.replace_input_with(0, scaled)
    if state.shapes is not None and value.name in state.shapes:
        shapes = dict(state.shapes)
        shapes[scaled.name or ""] = shapes[value.name or ""]
        state.shapes = shapes
    return True


def is_transformer(groups: list[Group]) -> bool:
    """Whether normalizations feed some of the layers: there outliers are the rule."""
    makers = [group.value.producer() for group in groups]
    return any(node is not None and node.op_type in _NORMALIZATIONS for node in makers)


def _smoothable(node: ir.Node, decision: NodeDecision | None) -> bool:
    """A planned MatMul with a private constant matrix, by tensor or token, 8-bit weight."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx") or decision is None:
        return False
    if decision.verdict is not Verdict.QUANTIZED or len(decision.inputs) < 2:
        return False
    activation, weight = decision.inputs[0], decision.inputs[1]
    if activation is None or weight is None or activation.is_float8:
        return False
    if activation.granularity not in (Granularity.TENSOR, Granularity.TOKEN):
        return False
    per_output = weight.granularity is Granularity.CHANNEL and weight.axis in (1, -1)
    return per_output or weight.granularity is Granularity.TENSOR


def _place(group: Group, plan: Plan, shapes: Shapes) -> None:
    """Fill where the factors can go."""
    shared = _shared_weight(group)
    if shared is not None:
        group.refusal, group.insertable = f"weight %{shared.name} is shared", False
        return
    channels = len(group.weights[0])
    maker = group.value.producer()
    made = None if maker is None else plan.nodes.get(maker.name or "")
    if made is not None and (made.verdict is Verdict.CARRIED or any(made.outputs)):
        group.insertable = False  # it comes in low precision, a Mul would need it in float
    try:
        group.readers = _readers(group, channels)
        group.fold = absorb(group.value, channels, shapes)
    except RefusedError as refused:
        group.refusal = str(refused)


def _shared_weight(group: Group) -> ir.Value | None:
    """A weight that a node outside the group reads too."""
    own = set(group.layers)
    for node in group.layers:
        weight = node.inputs[1]
        assert weight is not None
        foreign = any(use.node not in own or use.idx != 1 for use in weight.uses())
        if foreign or weight.is_graph_output():
            return weight
    return None


def _readers(group: Group, channels: int) -> list[Edit]:
    """Edits that undo the division in every reader of the value.

    Raises:
        RefusedError: A reader wants the value as it is.
    """
    if group.value.is_graph_output():
        raise RefusedError(f"%{group.value.name} is an output of the model")
    edits, every = group.own_edits, np.arange(channels)
    for use in group.value.uses():
        node = use.node
        if node in group.layers and use.idx == 0:
            continue
        if node.op_type == "Mul" and use.idx < 2 and vector(node, 1 - use.idx, channels):
            edits.append(Edit(node, 1 - use.idx, every, inverse=True))
        elif _float_linear(node, use.idx):
            edits.append(_rows(node, channels))
        else:
            raise RefusedError(f"{node.op_type} {node.name} reads %{group.value.name} too")
    return edits


def _rows(node: ir.Node, channels: int) -> Edit:
    return Edit(node, 1, np.arange(channels), inverse=True, rows=True)


def _float_linear(node: ir.Node, index: int) -> bool:
    if node.op_type != "MatMul" or index != 0 or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.inputs[1]
    array = constant(weight)
    return array is not None and array.ndim == 2 and weight is not None and len(weight.uses()) == 1


def _block(node: ir.Node) -> str:
    found = _BLOCK.match(module_of(node))
    return found.group(0) if found else ""

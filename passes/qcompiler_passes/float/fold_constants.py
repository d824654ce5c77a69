"""Compute at compile time what does not depend on the inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import QcError
from qcompiler.ir.edit import add_initializer, constant, is_constant, remove_dead, replace
from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.ir.walk import all_graphs, body_graphs
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.session import open_session, run, tensors_of
from qcompiler.runtime.settings import SessionSettings
from qcompiler_passes.float.shape_values import fold_shapes

__all__ = ["FoldConstants"]

Array = npt.NDArray[np.generic]

# Not functions of their inputs, or (quantized weights) kept small on purpose.
_NEVER = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
        "Dropout",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
# Operators whose output can be far larger than their inputs; folded only when that size is known.
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile"})
_GROWTH = 1.2
_EXACT = SessionSettings("disable")


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes with constant inputs by their result, computed by the runtime itself.

    Also folds arithmetic on shapes as far as it is certain: ``Shape`` of static dimensions, and
    what Gather, Slice, Concat, Squeeze and Unsqueeze make of it; a Reshape to dimensions its input
    already has gets a constant shape with zeros ("as in the input").

    The model does not grow: a result is kept when it has at most ``small_bytes``, or at most 1.2
    times the bytes of the constants that become unused. So a tied table is not copied for the sake
    of a Transpose. DequantizeLinear of a weight stays.

    Given (``%x: float[Nx8]``): ``%s = Shape(%x);  %d = Gather(%s, 1);  %r = Cast(%d) to=FLOAT``
    Result: ``%r = 8.0``

    Attributes:
        small_bytes: Results up to this size are always kept.
    """

    name: ClassVar[str] = "fold-constants"
    phase: ClassVar[Phase] = Phase.FLOAT

    small_bytes: int = 65536

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Shapes and constants in turn, until nothing changes; bodies are entered."""
        infer_shapes(model)
        modified = False
        while any(fold_shapes(g) | self._fold(model, g) for g in all_graphs(model)):
            modified = True
            remove_dead(model)
            infer_shapes(model)  # a folded shape may tell the rank of what follows
        return PassResult(modified)

    def _fold(self, model: ir.Model, graph: ir.Graph) -> bool:
        nodes = _candidates(graph, self.small_bytes)
        if not nodes:
            return False
        results = _compute(nodes, model)
        changed = False
        inside = set(nodes)
        for node in nodes:
            arrays = [results.get(output.name or "") for output in node.outputs]
            if not self._pays(node, arrays, inside):
                inside.discard(node)
                continue
            changed |= _replace(graph, node, arrays)
        return changed

    def _pays(self, node: ir.Node, arrays: list[Array | None], inside: set[ir.Node]) -> bool:
        used = [
            array
            for output, array in zip(node.outputs, arrays, strict=True)
            if output.uses() or output.is_graph_output()
        ]
        if any(array is None for array in used):
            return False
        made = sum(array.nbytes for array in used if array is not None)
        freed = sum(
            array.nbytes
            for value in set(node.inputs)
            if value is not None and (array := constant(value)) is not None
            if all(user in inside for user, _ in value.uses())
        )
        # an input that another candidate makes is gone with it
        return made <= self.small_bytes or made <= _GROWTH * freed


def _candidates(graph: ir.Graph, small_bytes: int) -> list[ir.Node]:
    """Nodes all of whose inputs are constants or outputs of earlier candidates."""
    known: set[ir.Value] = set()
    found = []
    for node in graph:
        if node.domain or node.op_type in _NEVER or next(body_graphs(node), None) is not None:
            continue
        if node.op_type == "Constant" or not node.inputs:
            continue
        if not all(v is None or v in known or is_constant(v) for v in node.inputs):
            continue
        if node.op_type in _GROWING and not _stays_small(node, small_bytes):
            continue
        known.update(node.outputs)
        found.append(node)
    return found


def _stays_small(node: ir.Node, small_bytes: int) -> bool:
    """Whether the output of a growing operator is known to be small before it is computed."""
    inputs = [constant(value) for value in node.inputs]
    if any(array is None for array in inputs):
        return False
    arrays = [array for array in inputs if array is not None]
    if node.op_type == "Range":
        start, limit, delta = (float(array) for array in arrays)
        count = (limit - start) / delta if delta else 0.0
    elif node.op_type == "Tile":
        count = float(np.prod(arrays[1], dtype=np.float64)) * arrays[0].size
    elif node.op_type == "Expand":
        count = float(np.prod(np.maximum(arrays[1], 1), dtype=np.float64)) * arrays[0].size
    else:
        count = float(np.prod(arrays[0], dtype=np.float64))
    return count * 8 <= small_bytes


def _compute(nodes: list[ir.Node], model: ir.Model) -> Mapping[str, Array]:
    """Every output of the nodes, from one session on a copy of them."""
    copies: dict[ir.Value, ir.Value] = {}
    weights: list[ir.Value] = []
    made = []
    for node in nodes:
        inputs = [
            None if value is None else copies.get(value) or _copy(value, copies, weights)
            for value in node.inputs
        ]
        outputs = [ir.Value(name=output.name) for output in node.outputs]
        copies.update(zip(node.outputs, outputs, strict=True))
        made.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                node.attributes.values(),
                outputs=outputs,
                name=node.name,
            )
        )
    results = [output for node in made for output in node.outputs if output.name]
    graph = ir.Graph(
        [],
        results,
        nodes=made,
        initializers=weights,
        opset_imports={"": model.opset_imports.get("", 1)},
        name="constants",
    )
    small = ir.Model(graph, ir_version=model.ir_version)
    try:
        return tensors_of(run(open_session(small, settings=_EXACT, threads=1), {}))
    except QcError:
        # what the runtime cannot compute here it need not compute early: nothing is folded, and
        # loading the whole model tells the user
        return {}


def _copy(value: ir.Value, copies: dict[ir.Value, ir.Value], weights: list[ir.Value]) -> ir.Value:
    tensor = value.const_value
    if tensor is None:
        array = constant(value)
        assert array is not None, "candidates have constant inputs"
        tensor = ir.tensor(array)
    twin = ir.Value(
        name=value.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    copies[value] = twin
    weights.append(twin)
    return twin


def _replace(graph: ir.Graph, node: ir.Node, arrays: list[Array | None]) -> bool:
    values = {}
    for output, array in zip(node.outputs, arrays, strict=True):
        if array is None or not output.uses():
            continue
        if output.is_graph_output():
            return False  # a graph output keeps a producer
        values[output] = add_initializer(graph, f"{output.name}/folded", np.asarray(array))
    if not values:
        return False
    replace(graph, [node], [], values)
    return True

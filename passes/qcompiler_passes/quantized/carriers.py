"""Operators that move stored data unchanged, between a DQ before and a Q behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import op_name
from qcompiler.pipeline.contract import State
from qcompiler.targets.activations import activation_spec, offered_activations
from qcompiler.targets.conditions import CONDITIONS, Context
from qcompiler_passes.quantized.fitting import Fitting
from qcompiler_passes.quantized.stored import BYTES, Stored, dequantize_of, quantize_behind, same

__all__ = ["Carried", "Carriers"]

_CHANGING = ("Relu", "Clip", "Pad")  # carry, but do not only move


@dataclasses.dataclass(frozen=True, slots=True)
class Carried:
    """A node that moves what is stored.

    Attributes:
        dequantize: The DQ before it.
        stored: How that stores its value.
        behind: The Q of each of its outputs, all with the same parameters.
    """

    dequantize: ir.Node
    stored: Stored
    behind: tuple[ir.Node, ...] = ()


class Carriers:
    """Finds them by the rows of a target."""

    def __init__(self, state: State, fitting: Fitting) -> None:
        """Ask the target of ``state``; what leads to the kernels of ``fitting`` may be moved."""
        self._rows = {row.op: row for row in state.target.carries}
        self._types = {*BYTES, *_activation_types(state)}
        self._context = Context(fitting.shapes, state.target, state.form)
        self._fitting = fitting

    def carried(self, node: ir.Node) -> Carried | None:
        """The node between a DQ and Qs with its parameters; None where it is no such node."""
        found = self._moved(node, self._types)
        qs = [quantize_behind(output) for output in node.outputs if output.uses()]
        behind = tuple(q for q in qs if q is not None)
        if found is None or not behind or len(behind) < len(qs):
            return None
        if not all(same(Stored.of(q), found.stored) for q in behind):
            return None
        return dataclasses.replace(found, behind=behind)

    def sink(self, node: ir.Node) -> bool:
        """Let the node move integers, and its DQ stand behind it, where a kernel reads them."""
        found = self._moved(node, BYTES)
        if found is None or node.op_type in _CHANGING:
            return False
        if any(quantize_behind(output) is not None for output in node.outputs):
            return False
        table = node.op_type == "Gather" and constant(found.dequantize.inputs[0]) is not None
        if not table and not any(map(self._leads_to_kernel, node.outputs)):
            return False
        outputs = [x for x in node.outputs if x.uses() and not x.is_graph_output()]
        for output in outputs:
            _convert_behind(node, output, found.dequantize)
        return bool(outputs)

    def _moved(self, node: ir.Node, types: Collection[ir.DataType]) -> Carried | None:
        """The node behind a DQ of one scale and one of ``types``; None where its row forbids it."""
        row = self._rows.get(op_name(node))
        dq = dequantize_of(node.inputs[0]) if row is not None and node.inputs else None
        stored = None if dq is None else Stored.of(dq)
        if row is None or dq is None or stored is None or not stored.per_tensor:
            return None
        if stored.dtype not in types:
            return None
        if any(CONDITIONS[name](node, self._context) is not None for name in row.conditions):
            return None
        return Carried(dq, stored)

    def _leads_to_kernel(self, value: ir.Value) -> bool:
        for use in value.uses():
            if self._fitting.rows(use.node):
                return True
            moves = op_name(use.node) in self._rows and use.idx == 0
            if moves and any(map(self._leads_to_kernel, use.node.outputs)):
                return True
        return False


def _convert_behind(node: ir.Node, output: ir.Value, dq: ir.Node) -> None:
    """Put Q and DQ with the parameters of ``dq`` behind an output of ``node``."""
    graph = node.graph
    assert isinstance(graph, ir.Graph), "carriers are in the main graph"
    uses = list(output.uses())
    tape = Tape(graph, output.name or "")
    zero_point = dq.inputs[2] if len(dq.inputs) > 2 else None
    q = tape.op(
        "QuantizeLinear",
        *((output, dq.inputs[1]) if zero_point is None else (output, *dq.inputs[1:3])),
        output_dtype=dq.inputs[0].dtype if zero_point is None and dq.inputs[0] else None,
    )
    back = tape.op("DequantizeLinear", q, *dq.inputs[1:])
    q.type = dq.inputs[0].type if dq.inputs[0] is not None else None
    back.type = ir.TensorType(ir.DataType.FLOAT)
    q.shape = back.shape = output.shape
    graph.insert_after(node, tape.nodes)
    inherit(tape.nodes, [node])
    for use in uses:
        use.node.replace_input_with(use.idx, back)


def _activation_types(state: State) -> set[ir.DataType]:
    """What activations of the target's static kernels are stored in, in the form."""
    names = offered_activations(state.target, state.form)
    specs = (activation_spec(state.target, state.form, name) for name in names)
    return {spec.dtype for spec in specs if spec is not None}

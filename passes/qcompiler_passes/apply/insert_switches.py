"""Give every planned node a switch between float and low precision, to measure what each costs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, fresh_name
from qcompiler.ir.provenance import inherit
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.sensitivity.switchboard import SWITCHES
from qcompiler_passes.apply.qdq_writer import QdqWriter, move_uses
from qcompiler_passes.planned import fused_behind

__all__ = ["InsertSwitches"]


@dataclasses.dataclass(frozen=True)
class InsertSwitches(Pass):
    """Compute each planned node twice, as float and as deployed, and let an input choose.

    The model gets one more input, ``qcompiler.switches``: bool ``[rows, planned nodes]``, in the
    order of the plan. With one row, column ``i`` is the switch of node ``i``; with as many rows as
    the batch has, every sample has switches of its own (where results have the batch in front).
    All off, which is the default, is the float model. Biases stay in float: as int32 they are exact
    to far below a step of what they are added to.

    Given, with ``%x`` and ``%w`` planned for a static kernel::

        %y = MatMul(%x, %w)

    Result::

        %y/float = MatMul(%x, %w)
        %xd = DequantizeLinear(QuantizeLinear(%x))
        %y/low = MatMul(%xd, %w/dequantized)
        %y = Where(switch of the node, %y/low, %y/float)
    """

    name: ClassVar[str] = "insert-switches"
    phase: ClassVar[Phase] = Phase.APPLY
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.PLAN, Fact.RANGES, Fact.WEIGHTS, Fact.SHAPES}
    )
    default: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Insert twins and switches; names of values and planned nodes stay."""
        assert state.plan is not None
        heads = [
            (node, decision)
            for node in model.graph
            if (decision := state.plan.nodes.get(node.name or "")) is not None
            and decision.verdict is Verdict.QUANTIZED
        ]
        if not heads:
            return PassResult(modified=False)
        board = _Board(model.graph, state, state.plan, len(heads))
        for index, (node, decision) in enumerate(heads):
            board.add(node, decision, index)
        return PassResult(modified=True)


class _Board:
    """One run of the pass on one graph."""

    def __init__(self, graph: ir.Graph, state: State, plan: Plan, count: int) -> None:
        self.graph = graph
        self.state = state
        self.plan = plan
        self.writer = QdqWriter(graph, state)
        off = np.zeros((1, count), np.bool_)
        self.switches = ir.Value(
            name=SWITCHES,
            shape=ir.Shape(["switch_rows", count]),
            type=ir.TensorType(ir.DataType.BOOL),
            const_value=ir.tensor(off, name=SWITCHES),
        )
        graph.inputs.append(self.switches)
        graph.register_initializer(self.switches)
        self.shapes: dict[int, ir.Value] = {}
        self.weights: dict[int, ir.Value] = {}

    def add(self, node: ir.Node, decision: NodeDecision, index: int) -> None:
        """The twin of a node and of what it absorbs, and the choice between the two."""
        chain = list(fused_behind(node, self.plan))
        last = chain[-1] if chain else node
        result = last.outputs[0]
        name = result.name or ""
        tape = Tape(self.graph, f"{node.name}/low")
        low = _twin(tape, node, self._operands(node, decision))
        for before, follower in zip([node, *chain], chain, strict=False):
            swap = {before.outputs[0]: low}
            low = _twin(tape, follower, [swap.get(v, v) if v else None for v in follower.inputs])
        self.graph.insert_after(last, tape.nodes)
        inherit(tape.nodes, [node])
        twins, low = tape.nodes, self._stored(low, decision, name)
        behind = low.producer()
        assert behind is not None, "a twin stands behind its node"
        tape = Tape(self.graph, f"{node.name}/switch")
        if self.writer.dtype_of(result) is not ir.DataType.FLOAT and low.dtype is ir.DataType.FLOAT:
            low = tape.op("Cast", low, to=self.writer.dtype_of(result))
        assert self.state.shapes is not None
        switch = self._switch(tape, index, len(self.state.shapes[name][1]))
        chosen = tape.op("Where", switch, low, result)
        chosen.shape, chosen.type = result.shape, ir.TensorType(self.writer.dtype_of(result))
        self.graph.insert_after(behind, tape.nodes)
        inherit(tape.nodes, [node])
        move_uses(self.graph, result, chosen, keep=[*twins, *tape.nodes])
        if result.name == name:  # the plan knows the value by its name
            result.name = fresh_name(self.graph, f"{name}/float")
            chosen.name = name

    def _operands(self, node: ir.Node, decision: NodeDecision) -> list[ir.Value | None]:
        assert self.state.weights is not None
        found: list[ir.Value | None] = list(node.inputs)
        for index, spec in enumerate(decision.inputs):
            value = node.inputs[index] if index < len(node.inputs) else None
            if spec is None or value is None:
                continue
            dtype = self.writer.dtype_of(value)
            weight = self.state.weights.get((node.name or "", index))
            if weight is not None:
                if id(weight) not in self.weights:
                    array = weight.dequantize().astype(dtype.numpy())
                    self.weights[id(weight)] = add_initializer(
                        self.graph, f"{value.name}/dequantized", array
                    )
                found[index] = self.weights[id(weight)]
                continue
            low = self.writer.dynamic(value, spec) if spec.dynamic else self.writer.static(value)
            if dtype is not ir.DataType.FLOAT:
                cast = Tape(self.graph, value.name or "")
                low = cast.op("Cast", low, to=dtype)
                self.graph.insert_before(node, cast.nodes)
                inherit(cast.nodes, [node])
            found[index] = low
        return found

    def _stored(self, low: ir.Value, decision: NodeDecision, name: str) -> ir.Value:
        """What a kernel that writes integers leaves of its result; else the result itself."""
        if not decision.outputs or decision.outputs[0] is None:
            return low
        own, low.name = low.name, name  # by which the plan knows the parameters
        stored = self.writer.static(low)
        low.name = own
        return stored

    def _switch(self, tape: Tape, index: int, rank: int) -> ir.Value:
        """Column ``index``, shaped ``[rows, 1, ...]`` to broadcast against a result."""
        column = add_initializer(self.graph, f"switch/{index}", np.array(index, np.int64))
        switch: ir.Value = tape.op("Gather", self.switches, column, axis=1)
        if rank not in self.shapes:
            shape = np.array([-1] + [1] * (rank - 1) if rank else [], np.int64)
            self.shapes[rank] = add_initializer(self.graph, f"switch/rank_{rank}", shape)
        shaped: ir.Value = tape.op("Reshape", switch, self.shapes[rank])
        return shaped


def _twin(tape: Tape, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
    """The first output of a copy of the node that reads ``inputs``."""
    copies = [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()]
    name = fresh_name(tape.graph, f"{node.name}/low")
    copy = ir.Node(
        node.domain, node.op_type, inputs, copies, num_outputs=len(node.outputs), name=name
    )
    for output in copy.outputs:
        output.name = fresh_name(tape.graph, name)
    value = copy.outputs[0]
    value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    tape.nodes.append(copy)
    return value

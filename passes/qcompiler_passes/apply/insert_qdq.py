"""Turn plan, ranges and rounded weights into Q and DQ nodes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import Tape, add_initializer, constant, import_domain
from qcompiler.ir.provenance import inherit
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.schemes import Granularity, QSpec
from qcompiler_passes.apply.gather_blocks import gather_blocks
from qcompiler_passes.apply.qdq_writer import QdqWriter, move_uses
from qcompiler_passes.apply.weight_functions import define_functions
from qcompiler_passes.apply.weight_writer import Rounded, WeightWriter
from qcompiler_passes.planned import CARRIER, INTO, KERNEL, fused_behind, tied_tables

__all__ = ["InsertQdq"]

# Runtimes that want the bias of a convolution in float: TensorRT quantizes it by itself
# (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
_FLOAT_BIAS = frozenset({"tensorrt"})

# Carriers all of whose inputs are data; of the others it is input 0.
_ALL_INPUTS = frozenset({"Concat", "Max", "Min"})


@dataclasses.dataclass(frozen=True)
class InsertQdq(Pass):
    """Write the QDQ dialect: what both output forms start from, and runnable as it is.

    Given, with ``%x`` and ``%w`` planned for a static kernel::

        %y = MatMul(%x, %w)

    Result::

        %xq = QuantizeLinear(%x, %x/scale, %x/zero_point)
        %xd = DequantizeLinear(%xq, %x/scale, %x/zero_point)
        %wd = DequantizeLinear(%w/q, %w/scale, %w/zero_point) axis=1
        %y = MatMul(%xd, %wd)
    """

    name: ClassVar[str] = "insert-qdq"
    phase: ClassVar[Phase] = Phase.APPLY
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.RANGES, Fact.WEIGHTS})
    drops: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Insert the nodes; the plan's node names stay.

        Raises:
            QcError: QC407, no pass rounded a weight; QC408, a value of the plan has no parameters.
        """
        assert state.plan is not None
        insertion = _Insertion(model.graph, state, state.plan)
        changed = False
        for node in list(model.graph):
            decision = state.plan.nodes.get(node.name or "")
            if decision is None:
                continue
            if decision.verdict is Verdict.QUANTIZED:
                insertion.quantized(node, decision)
                changed = True
            elif decision.verdict is Verdict.CARRIED:
                insertion.carried(node)
                changed = True
        insertion.drop_unread_weights()
        define_functions(model)
        if any(node.domain == "com.microsoft" for node in model.graph):
            import_domain(model, "com.microsoft")
        return PassResult(modified=changed)


class _Insertion:
    """One run of the pass on one graph."""

    def __init__(self, graph: ir.Graph, state: State, plan: Plan) -> None:
        self.graph = graph
        self.state = state
        self.plan = plan
        self.writer = QdqWriter(graph, state)
        self.weight_writer = WeightWriter(graph)
        self.tables = tied_tables(graph, plan)  # before weights are replaced
        self.float_bias = state.target.runtime in _FLOAT_BIAS
        self.replaced: set[ir.Value] = set()

    def quantized(self, node: ir.Node, decision: NodeDecision) -> None:
        """Put low-precision operands before ``node`` and, if planned, a stored result behind."""
        node.metadata_props[KERNEL] = decision.kernel
        if node.op_type == "Gather":
            spec = decision.inputs[0]
            if spec is not None and spec.granularity is Granularity.BLOCK:
                self._gather_blocks(node, spec)
            else:
                self._gather(node)
            return
        chain = list(fused_behind(node, self.plan))
        result = node.outputs[0]
        dtype = self.writer.dtype_of(result)
        weights = self._operands(node, decision)
        stored = bool(decision.outputs) and decision.outputs[0] is not None
        weight_only = all(spec is None for spec in decision.inputs[:1])
        float_bias = self.float_bias or weight_only or (1 in weights and weights[1].spec.is_float8)
        if 1 in weights and len(node.inputs) > 2 and not float_bias:
            bias = self.writer.bias(node, 2, weights[1])
            if bias is not None:
                self._replace_input(node, 2, bias)
        narrow = dtype is not ir.DataType.FLOAT and not weight_only
        if stored:
            for follower in chain:
                follower.metadata_props[INTO] = node.name or ""
                if narrow:
                    self._widen(follower)
            if narrow:
                self._widen(node)
            self.writer.store(chain[-1].outputs[0] if chain else result, dtype, self.takes_low)
        elif narrow:
            self._widen(node)
            self._cast_back(node, result, dtype)
        else:
            for follower in chain:
                follower.metadata_props[INTO] = node.name or ""

    def carried(self, node: ir.Node) -> None:
        """Put a DQ before and a Q behind a node that moves data, with the same parameters."""
        node.metadata_props[CARRIER] = "1"
        for index, value in enumerate(node.inputs):
            if value is None or self.writer.is_dequantized(value):
                continue
            if self.takes_low(node, index):
                self._replace_input(node, index, self.writer.static(value))
        for output in node.outputs:
            if output.uses() or output.is_graph_output():
                self.writer.store(output, self.writer.dtype_of(output), self.takes_low)

    def takes_low(self, node: ir.Node, index: int) -> bool:
        """Whether the node reads this input in low precision, by static parameters."""
        decision = self.plan.nodes.get(node.name or "")
        if decision is None:
            return False
        if decision.verdict is Verdict.QUANTIZED or decision.inputs:
            spec = decision.inputs[index] if index < len(decision.inputs) else None
            return spec is not None and not spec.dynamic
        return decision.verdict is Verdict.CARRIED and (index == 0 or node.op_type in _ALL_INPUTS)

    def drop_unread_weights(self) -> None:
        """Remove the float constants that nobody reads any more."""
        for value in self.replaced:
            unread = not value.uses() and not value.is_graph_output()
            if unread and value.is_initializer() and not value.is_graph_input():
                del self.graph.initializers[value.name or ""]
            elif unread and (producer := value.producer()) is not None:
                self.graph.remove(producer, safe=True)

    def _operands(self, node: ir.Node, decision: NodeDecision) -> dict[int, QTensor]:
        assert self.state.weights is not None
        weights = {}
        for index, spec in enumerate(decision.inputs):
            value = node.inputs[index] if index < len(node.inputs) else None
            if spec is None or value is None or self.writer.is_dequantized(value):
                continue
            key = (node.name or "", index)
            if key in self.state.weights and decision.inputs[0] is None:
                # floats come in, and the weight is their kind
                rounded = Rounded(self.state.weights, key, spec, _static_shape(value))
                dtype = self.writer.dtype_of(node.outputs[0])
                made = self.weight_writer.write(node, index, rounded, dtype)
                self._replace_input(node, index, made)
            elif key in self.state.weights:
                weights[index] = self.state.weights[key]
                dtype = ir.DataType.FLOAT
                made = self.writer.weight(node, index, weights[index], dtype)
                self._replace_input(node, index, made)
            elif index == 1 and decision.inputs[0] is None:
                raise QcError(
                    Code.PASS_ORDER,
                    node.name or "",
                    f"no pass of the pipeline rounded the weight, {decision.algorithm or 'rtn'} was"
                    " planned for it",
                    "put the pass into the recipe's pipeline, or leave `pipeline` out",
                )
            elif spec.dynamic:
                self._replace_input(node, index, self.writer.dynamic(value, spec))
            else:
                self._replace_input(node, index, self.writer.static(value))
        return weights

    def _gather_blocks(self, node: ir.Node, spec: QSpec) -> None:
        assert self.state.weights is not None
        dtype = self.writer.dtype_of(node.outputs[0])
        product = self.tables.get(node.name or "")
        gather_blocks(self.graph, node, spec, self.state.weights, product, dtype)

    def _gather(self, node: ir.Node) -> None:
        """Gather integers and the scales of their rows; the whole table is never dequantized."""
        assert self.state.weights is not None
        table = self.state.weights[node.name or "", 0]
        spec = table.spec
        by_row = spec.granularity is Granularity.CHANNEL and (spec.axis or 0) % table.q.ndim == 0
        if table.zero_point is not None or not (by_row or spec.granularity is Granularity.TENSOR):
            raise QcError(
                Code.NO_LOWERING,
                node.name or "",
                f"a table in {spec} cannot be gathered",
                "use s8c@0 or s8t",
            )
        result, ids = node.outputs[0], node.inputs[1]
        dtype = self.writer.dtype_of(result)
        q, scale, zero_point = self.writer.integers(node, 0, table, ir.DataType.FLOAT)
        axis = node.attributes.get_int("axis", 0)
        self._replace_input(node, 0, q)
        tape = Tape(self.graph, node.name or "")
        floats = tape.op("Cast", result, to=ir.DataType.FLOAT)
        if by_row:
            rows = scale.const_value
            assert rows is not None
            column = add_initializer(
                self.graph, f"{scale.name}/column", rows.numpy().reshape(-1, 1)
            )
            self.replaced.add(scale)
            scale = tape.op("Gather", column, ids, axis=axis)
        final = tape.op("Mul", floats, scale)
        if dtype is not ir.DataType.FLOAT:
            final = tape.op("Cast", final, to=dtype)
        final.shape, final.type = result.shape, ir.TensorType(dtype)
        self.graph.insert_after(node, tape.nodes)
        inherit(tape.nodes, [node])
        move_uses(self.graph, result, final, keep=tape.nodes)
        assert q.dtype is not None
        result.type = ir.TensorType(q.dtype)
        if zero_point is not None:
            self.replaced.add(zero_point)

    def _cast_back(self, node: ir.Node, result: ir.Value, dtype: ir.DataType) -> None:
        """Readers get the type they had; those that take low precision quantize the float32."""
        low = [(use.node, use.idx) for use in result.uses() if self.takes_low(use.node, use.idx)]
        for reader, index in low:
            reader.replace_input_with(index, self.writer.static(result))
        stored = [use.node for use in result.uses() if use.node.op_type == "QuantizeLinear"]
        tape = Tape(self.graph, node.name or "")
        cast = tape.op("Cast", result, to=dtype)
        cast.shape, cast.type = result.shape, ir.TensorType(dtype)
        self.graph.insert_after(node, tape.nodes)
        inherit(tape.nodes, [node])
        move_uses(self.graph, result, cast, keep=[*tape.nodes, *stored])

    def _widen(self, node: ir.Node) -> None:
        """Compute in float32 between DQ and Q: constants follow, the result is float32."""
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if value is None or array is None or array.dtype == np.float32:
                continue
            if self.writer.dtype_of(value) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                wide = add_initializer(
                    self.graph, f"{value.name}/float32", array.astype(np.float32)
                )
                self._replace_input(node, index, wide)
        for output in node.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)

    def _replace_input(self, node: ir.Node, index: int, value: ir.Value) -> None:
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None and constant(old) is not None:
            self.replaced.add(old)


def _static_shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None, "a constant has a shape"
    return tuple(int(size) for size in value.shape.numpy())

"""One run of ``adopt-quantized`` on one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit, module_of, origins
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import State, TensorRange
from qcompiler.plan import Intent, NodeDecision, Own, Verdict
from qcompiler.schemes import Granularity
from qcompiler.targets.activations import activation_spec, offered_activations
from qcompiler.targets.conditions import CONDITIONS, Context
from qcompiler.targets.schema import Carry, Form, Scheme
from qcompiler_passes.apply.qdq_writer import QdqWriter
from qcompiler_passes.decide.reasons import diagnose
from qcompiler_passes.decide.rows import Refusal, Rows, is_float, telling
from qcompiler_passes.decide.wishes import wishes_of
from qcompiler_passes.planned import CARRIER, INTO, KERNEL, SPEC
from qcompiler_passes.quantized.channel_scales import merge_channel_scales
from qcompiler_passes.quantized.dequantized import float_constant
from qcompiler_passes.quantized.fitting import Fit, Fitting
from qcompiler_passes.quantized.signs import Signs
from qcompiler_passes.quantized.stored import (
    AdoptedWeights,
    Stored,
    dequantize_of,
    is_dequantize,
    is_quantize,
    quantize_behind,
    same,
)

__all__ = ["Adoption"]

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)  # what every runtime moves


class Adoption:
    """Finds the sites, stamps them, and keeps what the plan will say.

    Attributes:
        values: Intent of each stored activation.
        ranges: The range that each of them came with.
        weights: Integers by node and input index.
    """

    def __init__(
        self, model: ir.Model, state: State, fitting: Fitting, kept: Collection[str] = ()
    ) -> None:
        """Work on the main graph of ``model``; nodes of the names ``kept`` stay as they came."""
        self.kept = kept
        self.model = model
        self.graph = model.graph
        self.state = state
        self.fitting = fitting
        self.writer = QdqWriter(model.graph, state)
        self.carries = {row.op: row for row in state.target.carries}
        self.carried = {*_BYTES, *_activation_types(state)}
        self.wishes = wishes_of(all_nodes(model), state.recipe, state.removed)
        self.values: dict[str, Intent] = {}
        self.ranges: dict[str, TensorRange] = {}
        self.weights = AdoptedWeights()
        self._decided: dict[str, NodeDecision] = {}
        self._refusals: dict[str, Refusal] = {}
        self._active: set[ir.Node] = set()
        self._edited = False

    def run(self) -> bool:
        """Stamp all sites; whether anything was edited (a stamp is no edit)."""
        tables = Scheme.WEIGHT in self.state.recipe.schemes
        rows = Rows(self.state.target, self.state.form, self.fitting.shapes, embeddings=tables)
        signs = Signs(self.graph)
        if rows.activation is not None:
            self._edited |= signs.unify_activations(rows.activation.dtype)
        if any(row.op == "Conv" for row in self.state.target.kernels):
            self._edited |= merge_channel_scales(self.graph)
        for node in list(self.graph):
            if self.state.form is Form.ORT and self._should_sink(node):
                self._sink(node)
            self._carry(node)
        for node in list(self.graph):
            if str(node.name) not in self._decided:
                self._site(node, signs)
        return self._edited

    def decisions(self) -> dict[str, NodeDecision]:
        """A decision for every node of the model, in graph order."""
        nodes = {}
        for node in self.graph:
            name = str(node.name)
            nodes[name] = self._decided.get(name) or self._conversion(node) or self._left(node)
        for node in all_nodes(self.model):
            if node.graph is not self.graph:
                refusal = Refusal(Code.IN_SUBGRAPH, "it is in the body of an If, Loop or Scan")
                nodes[str(node.name)] = _float(node, refusal)
        return nodes

    def _site(self, node: ir.Node, signs: Signs) -> None:
        if not self.fitting.rows(node) or not any(map(dequantize_of, node.inputs)):
            return
        rule = self.wishes[str(node.name)].rule
        if rule is not None and rule.scheme == "float":
            reason = rule.reason or f"a rule keeps {rule.match!r} in float"
            self._refusals[str(node.name)] = Refusal(Code.KEPT_BY_RULE, reason)
            return
        if node.name in self.kept:
            self._refusals[str(node.name)] = Refusal(Code.KEPT_BY_RULE, "the given plan keeps it")
            return
        self._unfold_bias(node)
        fit = self.fitting.best(node)
        if isinstance(fit, list):
            refusal = telling(fit)
            if refusal is not None:
                self._refusals[str(node.name)] = refusal
            return
        self._stamp(node, fit, signs)

    def _stamp(self, node: ir.Node, fit: Fit, signs: Signs) -> None:
        name = str(node.name)
        node.metadata_props[KERNEL] = fit.row.id
        self._active.add(node)
        for index, spec in enumerate(fit.inputs):
            dq = dequantize_of(node.inputs[index]) if spec is not None else None
            if spec is None or dq is None or spec.dynamic:
                continue
            if constant(dq.inputs[0]) is None:
                self._own(dq)
                continue
            before = dq.outputs[0]
            if spec.granularity is not Granularity.BLOCK:
                dq = signs.constant(node, index, dq, spec.dtype)
                self._edited |= dq.outputs[0] is not before
            dq.metadata_props[SPEC] = str(spec)
            stored = Stored.of(dq)
            read = None if stored is None else stored.reader()
            if read is not None and stored is not None and stored.rank:  # a scalar is no weight
                self.weights.add(name, index, read)
        if fit.bias is not None:
            self._round_bias(node, fit)
        for follower in fit.chain:
            follower.metadata_props[INTO] = name
            self._decided[str(follower.name)] = _decide(follower, Verdict.FUSED, into=name)
        output = None
        if fit.quantize is not None:
            stored = self._own(fit.quantize)
            output = None if stored is None else stored.spec()
            self._active.add(fit.quantize)
        self._decided[name] = _decide(
            node,
            Verdict.QUANTIZED,
            kernel=fit.row.id,
            inputs=fit.inputs,
            outputs=(output, *(None for _ in node.outputs[1:])),
        )

    def _own(self, conversion: ir.Node) -> Stored | None:
        """Note the range of the activation that a Q or DQ stores."""
        source = conversion.inputs[0]
        maker = None if source is None else source.producer()
        q = conversion if is_quantize(conversion) else maker
        stored = Stored.of(conversion)
        if stored is None or q is None or not is_quantize(q) or q.inputs[0] is None:
            return stored
        name = str(q.inputs[0].name)
        spec = stored.spec()
        if not spec.is_float8:
            spec = dataclasses.replace(spec, symmetric=self._is_symmetric(spec))
        self.values.setdefault(name, Own(spec))
        bits = stored.dtype.bitwidth
        low = -(1 << (bits - 1)) if stored.dtype.is_signed() else 0
        high = low + (1 << bits) - 1
        if spec.is_float8:
            low, high = spec.qmin, spec.qmax
        ends = np.array([low, high]) - stored.zero_point
        lo, hi = (ends * stored.scale).astype(np.float32)
        self.ranges.setdefault(name, TensorRange(np.asarray(lo), np.asarray(hi), "given"))
        return stored

    def _is_symmetric(self, spec: object) -> bool:
        rows = [r for r in self.state.target.kernels if r.scheme is Scheme.STATIC]
        first = next((s for r in rows for s in r.inputs if s is not None), None)
        return first is not None and first.symmetric

    def _unfold_bias(self, node: ir.Node) -> None:
        """Let the bias behind a MatMul be floats where kernels take floats: exact."""
        if node.op_type != "MatMul" or self.state.form is not Form.ORT:
            return
        for use in list(node.outputs[0].uses()):
            if use.node.op_type != "Add":
                continue
            dq = dequantize_of(use.node.inputs[1 - use.idx])
            stored = None if dq is None else Stored.of(dq)
            if dq is not None and stored is not None and stored.dtype is ir.DataType.INT32:
                self._edited |= float_constant(self.graph, dq)

    def _round_bias(self, node: ir.Node, fit: Fit) -> None:
        x, w = (dequantize_of(node.inputs[index]) for index in (0, 1))
        assert x is not None
        assert w is not None
        x_stored, w_stored = Stored.of(x), Stored.of(w)
        assert x_stored is not None
        assert w_stored is not None
        assert fit.bias is not None
        steps = (x_stored.scale * w_stored.scale.reshape(-1)).astype(np.float32)
        node.replace_input_with(2, self.writer.int32_constant(node, 2, fit.bias, steps))
        self._edited = True

    def _carry(self, node: ir.Node) -> None:
        """Stamp a node that moves stored data, where Q behind has the parameters of DQ before."""
        row = self.carries.get(op_name(node)) if node.name not in self.kept else None
        dq = dequantize_of(node.inputs[0]) if row is not None and node.inputs else None
        stored = None if dq is None else Stored.of(dq)
        if row is None or dq is None or stored is None or not stored.per_tensor:
            return
        if stored.dtype not in self.carried:
            return
        behind = [quantize_behind(output) for output in node.outputs if output.uses()]
        if not behind or any(q is None or not same(Stored.of(q), stored) for q in behind):
            return
        if self._carry_refusal(node, row) is not None:
            return
        node.metadata_props[CARRIER] = "1"
        self._active.update({node, *(q for q in behind if q is not None)})
        self._own(dq)
        spec = stored.spec()
        self._decided[str(node.name)] = _decide(
            node,
            Verdict.CARRIED,
            inputs=(spec, *(None for _ in node.inputs[1:])),
            outputs=tuple(spec if value.name else None for value in node.outputs),
        )

    def _carry_refusal(self, node: ir.Node, row: Carry) -> str | None:
        context = Context(self.fitting.shapes, self.state.target, self.state.form)
        for name in row.conditions:
            reason = CONDITIONS[name](node, context)
            if reason is not None:
                return reason
        return None

    def _should_sink(self, node: ir.Node) -> bool:
        """Whether a mover should move the integers, and its DQ stand behind it."""
        row = self.carries.get(op_name(node))
        dq = dequantize_of(node.inputs[0]) if row is not None and node.inputs else None
        stored = None if dq is None else Stored.of(dq)
        if row is None or dq is None or stored is None or not stored.per_tensor:
            return False
        if stored.dtype not in _BYTES:
            return False
        if self._carry_refusal(node, row) is not None or node.op_type in ("Relu", "Clip", "Pad"):
            return False
        if any(quantize_behind(output) is not None for output in node.outputs):
            return False
        table = node.op_type == "Gather" and constant(dq.inputs[0]) is not None
        return table or any(self._leads_to_kernel(output) for output in node.outputs)

    def _leads_to_kernel(self, value: ir.Value) -> bool:
        for use in value.uses():
            if self.fitting.rows(use.node):
                return True
            moves = op_name(use.node) in self.carries and use.idx == 0
            if moves and any(map(self._leads_to_kernel, use.node.outputs)):
                return True
        return False

    def _sink(self, node: ir.Node) -> None:
        dq = dequantize_of(node.inputs[0])
        assert dq is not None
        for output in node.outputs:
            if not output.uses() or output.is_graph_output():
                continue
            uses = list(output.uses())
            tape = Tape(self.graph, output.name or "")
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
            self.graph.insert_after(node, tape.nodes)
            inherit(tape.nodes, [node])
            for use in uses:
                use.node.replace_input_with(use.idx, back)
            self._edited = True

    def _conversion(self, node: ir.Node) -> NodeDecision | None:
        """The decision of a Q or DQ: part of the site it serves, or kept."""
        dynamic = node.op_type == "DynamicQuantizeLinear"
        if not (is_quantize(node) or is_dequantize(node) or dynamic):
            return None
        into = self._serves(node)
        if into is not None:
            return _decide(node, Verdict.FUSED, into=into)
        return _float(
            node,
            Refusal(
                Code.ALREADY_QUANTIZED,
                f"the model came with this {node.op_type}, and no kernel takes it in",
            ),
        )

    def _serves(self, node: ir.Node) -> str | None:
        if is_dequantize(node):
            readers = [use.node for use in node.outputs[0].uses()]
            for follower in list(readers):  # the bias of a fused Add
                found = self._decided.get(str(follower.name))
                if found is not None and found.verdict is Verdict.FUSED:
                    return found.into
            return next((str(n.name) for n in readers if n in self._active), None)
        if node in self._active:
            value = node.inputs[0]
            maker = None if value is None else value.producer()
            while maker is not None:
                found = self._decided.get(str(maker.name))
                if found is None:
                    return None
                if found.verdict is Verdict.FUSED:
                    return found.into
                return found.node
        for output in node.outputs:
            for use in output.uses():
                if is_dequantize(use.node) and (found_in := self._serves(use.node)) is not None:
                    return found_in
        return None

    def _left(self, node: ir.Node) -> NodeDecision:
        refusal = self._refusals.get(str(node.name))
        name = op_name(node)
        value = node.outputs[0] if node.outputs else None
        if refusal is None and node.domain not in ("", "com.microsoft", "ai.onnx.ml"):
            refusal = Refusal(
                Code.CUSTOM_OP, f"nothing is known of operators of domain {node.domain!r}"
            )
        if refusal is None and node.op_type.startswith(_INTEGER_OPERATORS):
            refusal = Refusal(Code.ALREADY_QUANTIZED, f"the model came with this {node.op_type}")
        if refusal is None and value is not None and not is_float(value, self.fitting.shapes):
            refusal = Refusal(Code.SHAPE_COMPUTATION, "it gives shapes, indices or masks")
        if refusal is None and any(map(dequantize_of, node.inputs)):
            refusal = Refusal(
                Code.NO_KERNEL,
                f"{self.state.target.name} has no low-precision kernel for {name}:"
                " it computes on dequantized floats, as it came",
            )
        if refusal is None:
            refusal = Refusal(Code.NOT_SELECTED, "the model came with it in float")
        return _float(node, refusal)


_INTEGER_OPERATORS = (
    "QLinear",
    "QGemm",
    "QAttention",
    "QEmbed",
    "QOrdered",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantize",
    "MatMulNBits",
    "MatMulBnb4",
    "GatherBlockQuantized",
    "QMoE",
)


def _activation_types(state: State) -> set[ir.DataType]:
    """What activations of the target's static kernels are stored in, in the form."""
    names = offered_activations(state.target, state.form)
    specs = (activation_spec(state.target, state.form, name) for name in names)
    return {spec.dtype for spec in specs if spec is not None}


def _decide(node: ir.Node, verdict: Verdict, **fields: object) -> NodeDecision:
    return NodeDecision(
        str(node.name),
        op_name(node),
        verdict,
        origin=origins(node),
        module=module_of(node),
        **fields,  # type: ignore[arg-type]  # dataclass fields, checked at each call
    )


def _float(node: ir.Node, refusal: Refusal) -> NodeDecision:
    return _decide(node, Verdict.FLOAT, reason=diagnose(node, refusal))

"""What became of each node of a model that came quantized."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.plan import NodeDecision, Verdict
from qcompiler.targets.cost import Shapes
from qcompiler.targets.schema import Target
from qcompiler_passes.decide.assemble import decision_of
from qcompiler_passes.decide.reasons import diagnose
from qcompiler_passes.decide.rows import Refusal, is_float
from qcompiler_passes.quantized.stored import dequantize_of, is_dequantize, is_quantize

__all__ = ["Verdicts"]

_DOMAINS = ("", "com.microsoft", "ai.onnx.ml")
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


class Verdicts:
    """Collects what is decided, and finds out the rest.

    Attributes:
        active: Nodes that compute on integers, move them, or give them to those that do.
    """

    def __init__(self, target: Target, shapes: Shapes) -> None:
        """Judge by the kernels of ``target``; ``shapes`` are those of the sample."""
        self.active: set[ir.Node] = set()
        self._target = target
        self._shapes = shapes
        self._decided: dict[str, NodeDecision] = {}
        self._refusals: dict[str, Refusal] = {}

    def __contains__(self, node: ir.Node) -> bool:
        """Whether the node is decided."""
        return str(node.name) in self._decided

    def decide(self, node: ir.Node, verdict: Verdict, **fields: object) -> None:
        """Note a decision; ``fields`` are those of :class:`NodeDecision`."""
        self._decided[str(node.name)] = decision_of(node, verdict, **fields)

    def refuse(self, node: ir.Node, refusal: Refusal) -> None:
        """Note why no kernel takes the node in, unless it is decided otherwise."""
        self._refusals[str(node.name)] = refusal

    def of(self, model: ir.Model) -> dict[str, NodeDecision]:
        """A decision for every node of the model, in graph order, bodies of control flow last."""
        nodes = {}
        for node in model.graph:
            name = str(node.name)
            made = self._decided.get(name) or self._conversion(node)
            nodes[name] = made or _float(node, self._why_left(node))
        for node in all_nodes(model):
            if node.graph is not model.graph:
                refusal = Refusal(Code.IN_SUBGRAPH, "it is in the body of an If, Loop or Scan")
                nodes[str(node.name)] = _float(node, refusal)
        return nodes

    def _conversion(self, node: ir.Node) -> NodeDecision | None:
        """The decision of a Q or DQ: part of the site it serves, or kept."""
        dynamic = node.op_type == "DynamicQuantizeLinear"
        if not (is_quantize(node) or is_dequantize(node) or dynamic):
            return None
        into = self._served_by(node)
        if into is not None:
            return decision_of(node, Verdict.FUSED, into=into)
        return _float(
            node,
            Refusal(
                Code.ALREADY_QUANTIZED,
                f"the model came with this {node.op_type}, and no kernel takes it in",
            ),
        )

    def _served_by(self, node: ir.Node) -> str | None:
        """Name of the site that a Q or DQ serves."""
        if is_dequantize(node):
            readers = [use.node for use in node.outputs[0].uses()]
            for follower in readers:  # the bias of a fused Add
                found = self._decided.get(str(follower.name))
                if found is not None and found.verdict is Verdict.FUSED:
                    return found.into
            return next((str(n.name) for n in readers if n in self.active), None)
        if node in self.active:
            maker = node.inputs[0].producer() if node.inputs[0] is not None else None
            if maker is not None:
                found = self._decided.get(str(maker.name))
                if found is None:
                    return None
                return found.into if found.verdict is Verdict.FUSED else found.node
        for output in node.outputs:
            for use in output.uses():
                if is_dequantize(use.node) and (found_in := self._served_by(use.node)) is not None:
                    return found_in
        return None

    def _why_left(self, node: ir.Node) -> Refusal:
        """Why a node that nobody decided stays as it came: the first reason that holds."""
        if str(node.name) in self._refusals:
            return self._refusals[str(node.name)]
        if node.domain not in _DOMAINS:
            said = f"nothing is known of operators of domain {node.domain!r}"
            return Refusal(Code.CUSTOM_OP, said)
        if node.op_type.startswith(_INTEGER_OPERATORS):
            return Refusal(Code.ALREADY_QUANTIZED, f"the model came with this {node.op_type}")
        if node.outputs and not is_float(node.outputs[0], self._shapes):
            return Refusal(Code.SHAPE_COMPUTATION, "it gives shapes, indices or masks")
        if any(map(dequantize_of, node.inputs)):
            return Refusal(
                Code.NO_KERNEL,
                f"{self._target.name} has no low-precision kernel for {op_name(node)}:"
                " it computes on dequantized floats, as it came",
            )
        return Refusal(Code.NOT_SELECTED, "the model came with it in float")


def _float(node: ir.Node, refusal: Refusal) -> NodeDecision:
    return decision_of(node, Verdict.FLOAT, reason=diagnose(node, refusal))

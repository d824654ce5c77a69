"""One operator for a residual sum and the normalization that reads it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.ir.edit import Tape, import_domain, replace
from qcompiler.ir.walk import all_graphs
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.targets.schema import Form

__all__ = ["FuseSkipNorm"]

_EPSILON = 1e-5  # of RMSNormalization where it does not say; the fused operator has another default


@dataclasses.dataclass(frozen=True)
class FuseSkipNorm(Pass):
    """Let one kernel add a layer's result to its input and normalize the sum.

    A token has one row, so that starting a kernel takes longer than its arithmetic.

    Given:   ``%s = Add(%x, %y)``, ``%n = RMSNormalization(%s, %gain)``
    Result:  ``%n, _, _, %s = SkipSimplifiedLayerNormalization(%x, %y, %gain)``

    In the main graph and in bodies, on form ``ort``; sums that broadcast stay.
    """

    name: ClassVar[str] = "fuse-skip-norm"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Every sum of two float32 values of one shape that a normalization reads."""
        if state.form is not Form.ORT:
            return PassResult(False)
        modified = False
        for graph in list(all_graphs(model)):
            fused = [_fuse(graph, node) for node in list(graph) if node.op_type == "Add"]
            if any(fused):
                graph.sort()  # a gain may be made behind the sum
                modified = True
        if modified:
            import_domain(model, "com.microsoft")
        return PassResult(modified)


def _fuse(graph: ir.Graph, add: ir.Node) -> bool:
    total = add.outputs[0]
    norm = next((use.node for use in total.uses() if _reads_rows(use.node, graph)), None)
    if norm is None or not _adds_rows(add):
        return False
    tape = Tape(graph, norm.name or "")
    result, _, _, again = tape.op(
        "SkipSimplifiedLayerNormalization",
        *(*add.inputs, norm.inputs[1]),
        domain="com.microsoft",
        outputs=4,
        epsilon=norm.attributes.get_float("epsilon", _EPSILON),
    )
    unused = list(tape.nodes[0].outputs[1:3])
    if len(total.uses()) == 1 and not total.is_graph_output():
        unused.append(again)
    for value in unused:
        value.name = ""
    replace(graph, [add, norm], tape.nodes, {total: again, norm.outputs[0]: result})
    return True


def _reads_rows(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether it normalizes the last axis, in this graph."""
    return (
        (node.domain, node.op_type) == ("", "RMSNormalization")
        and node.graph is graph
        and node.attributes.get_int("axis", -1) == -1
        and node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT.value
    )


def _adds_rows(add: ir.Node) -> bool:
    """Whether it adds float32 of one shape; the kernel takes rows in two or three dimensions."""
    if any(value is None or value.dtype is not ir.DataType.FLOAT for value in add.inputs):
        return False
    first, second = (None if value is None else value.shape for value in add.inputs)
    if first is None or second is None or len(first) not in (2, 3) or first != second:
        return False
    return all(isinstance(dim, int) or dim.value is not None for dim in first)

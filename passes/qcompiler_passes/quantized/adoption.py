"""One run of ``adopt-quantized`` on one graph."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.ir.edit import constant
from qcompiler.ir.walk import all_nodes
from qcompiler.pipeline.contract import State, TensorRange
from qcompiler.plan import Intent, Own, Verdict
from qcompiler.schemes import Granularity
from qcompiler.targets.schema import Form, Scheme
from qcompiler_passes.apply.qdq_writer import QdqWriter
from qcompiler_passes.decide.rows import Refusal, Rows, telling
from qcompiler_passes.decide.wishes import wishes_of
from qcompiler_passes.planned import CARRIER, INTO, KERNEL, SPEC
from qcompiler_passes.quantized.carriers import Carriers
from qcompiler_passes.quantized.channel_scales import merge_channel_scales
from qcompiler_passes.quantized.dequantized import float_constant
from qcompiler_passes.quantized.fitting import Fit, Fitting
from qcompiler_passes.quantized.signs import Signs
from qcompiler_passes.quantized.stored import AdoptedWeights, Stored, dequantize_of, is_quantize
from qcompiler_passes.quantized.verdicts import Verdicts

__all__ = ["Adoption"]


class Adoption:
    """Finds the sites, stamps them, and keeps what the plan will say.

    Attributes:
        values: Intent of each stored activation.
        ranges: The range that each of them came with.
        weights: Integers by node and input index.
        verdicts: What became of each node.
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
        self.carriers = Carriers(state, fitting)
        self.wishes = wishes_of(all_nodes(model), state.recipe, state.removed)
        self.values: dict[str, Intent] = {}
        self.ranges: dict[str, TensorRange] = {}
        self.weights = AdoptedWeights()
        self.verdicts = Verdicts(state.target, fitting.shapes)
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
            if self.state.form is Form.ORT:
                self._edited |= self.carriers.sink(node)
            self._carry(node)
        for node in list(self.graph):
            if node not in self.verdicts:
                self._site(node, signs)
        return self._edited

    def _site(self, node: ir.Node, signs: Signs) -> None:
        if not self.fitting.rows(node) or not any(map(dequantize_of, node.inputs)):
            return
        rule = self.wishes[str(node.name)].rule
        if rule is not None and rule.scheme == "float":
            reason = rule.reason or f"a rule keeps {rule.match!r} in float"
            self.verdicts.refuse(node, Refusal(Code.KEPT_BY_RULE, reason))
            return
        if node.name in self.kept:
            self.verdicts.refuse(node, Refusal(Code.KEPT_BY_RULE, "the given plan keeps it"))
            return
        self._unfold_bias(node)
        fit = self.fitting.best(node)
        if isinstance(fit, list):
            refusal = telling(fit)
            if refusal is not None:
                self.verdicts.refuse(node, refusal)
            return
        self._stamp(node, fit, signs)

    def _stamp(self, node: ir.Node, fit: Fit, signs: Signs) -> None:
        name = str(node.name)
        node.metadata_props[KERNEL] = fit.row.id
        self.verdicts.active.add(node)
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
            self.verdicts.decide(follower, Verdict.FUSED, into=name)
        output = None
        if fit.quantize is not None:
            stored = self._own(fit.quantize)
            output = None if stored is None else stored.spec()
            self.verdicts.active.add(fit.quantize)
        self.verdicts.decide(
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
            spec = dataclasses.replace(spec, symmetric=self._symmetric)
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

    @functools.cached_property
    def _symmetric(self) -> bool:
        """Whether the target's static activations are."""
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
        carried = self.carriers.carried(node) if node.name not in self.kept else None
        if carried is None:
            return
        node.metadata_props[CARRIER] = "1"
        self.verdicts.active.update({node, *carried.behind})
        self._own(carried.dequantize)
        spec = carried.stored.spec()
        self.verdicts.decide(
            node,
            Verdict.CARRIED,
            inputs=(spec, *(None for _ in node.inputs[1:])),
            outputs=tuple(spec if value.name else None for value in node.outputs),
        )

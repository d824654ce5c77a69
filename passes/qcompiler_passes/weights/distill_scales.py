"""Let the scales of rounded weights learn from the float model's outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import ChainMap
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Plan, Verdict
from qcompiler.recipe import DistillOptions
from qcompiler.stages.cut import Site
from qcompiler.stages.store import ArrayStore
from qcompiler_passes.planned import tied_tables
from qcompiler_passes.weights.staged import CountedFeeds, common_facts, digested_feeds

if TYPE_CHECKING:
    from qcompiler.distillation import Distilled

__all__ = ["DistillScales"]


@dataclasses.dataclass(frozen=True)
class DistillScales(Pass):
    """Train the scales of all weight-only layers together, where the recipe gives steps for it.

    Whatever algorithm rounded them: integers, zero points and all types stay as they are, so the
    artifact is as small and as fast as without. The loss is the divergence of the rounded model's
    outputs from those of the float model (:mod:`qcompiler.distillation.scales`), and samples that
    are held out decide which scales are kept. A layer whose scales are tied (to an embedding
    table, to other scales by ``double_quant`` or ``fp8_scales``, to another layer) keeps them, and
    so does one from which no gradient leads to the outputs; that is told.

    With ``work=`` a compile that was killed goes on from a step not long before.
    """

    name: ClassVar[str] = "distill-scales"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Replace tensors of ``state.weights``; the model is untouched.

        Raises:
            QcError: QC410 there is no data; QC411 torch is not installed, or the data can be read
                only once.
        """
        assert state.plan is not None
        assert state.weights is not None
        options = state.recipe.distill
        if not options.steps:
            return PassResult(modified=False)
        layers, said = _layers(model.graph, state.plan, state)
        if not layers:
            return PassResult(modified=False, diagnostics=said)
        if state.feeds is None:
            raise QcError(
                Code.NEEDS_CALIBRATION,
                "distill.steps",
                "scales learn from what the float model gives on data, and there is no data",
                "give calibration data, or set distill.steps = 0",
            )
        try:
            from qcompiler.distillation import distill_scales
            from qcompiler.distillation.scales import DistillOptions as Options
        except ImportError as error:
            raise QcError(
                Code.USAGE,
                "distill.steps",
                "scales learn with torch, which is not installed",
                "pip install torch, or set distill.steps = 0",
            ) from error
        given, data = digested_feeds(state)
        feeds = CountedFeeds(given)
        tensors = {value: state.weights[nodes[0].name or "", 1] for value, nodes in layers.items()}
        store = None
        if state.work is not None:
            key = _key(model, state, data, options)
            store = ArrayStore(state.work), key
        found = distill_scales(
            model,
            tensors,
            state.weights,
            feeds,
            options=Options(**options.model_dump(), seed=state.recipe.seed),
            mask=state.recipe.calibration.mask,
            store=store,
            progress=_progress(state, options.steps),
        )
        learned: dict[Site, QTensor] = {
            (node.name or "", 1): tensor
            for value, tensor in found.tensors.items()
            for node in layers[value]
        }
        if learned:
            # only read from; the others stay where they are kept
            state.weights = ChainMap(learned, state.weights)  # type: ignore[arg-type]
        for value, why in found.unreached.items():
            behind = f": {why}" if why else ""
            for node in layers[value]:
                message = f"no gradient leads from it to the outputs{behind}"
                said.append(Diagnostic(Code.SCALES_KEPT, node.name or "", message))
        reached = sum(len(n) for value, n in layers.items() if value not in found.unreached)
        if reached:
            said.append(_summary(found, reached, options.steps))
        return PassResult(modified=False, diagnostics=(*said, *feeds.too_few("distill")))


def _layers(
    graph: ir.Graph, plan: Plan, state: State
) -> tuple[dict[ir.Value, list[ir.Node]], list[Diagnostic]]:
    """Layers whose scales may learn, by their constant; and why others may not."""
    tied = {product.name for product in tied_tables(graph, plan).values()}
    found: dict[ir.Value, list[ir.Node]] = {}
    said = []
    for node in graph:
        if not _is_weight_only(node, plan, state):
            continue
        value = node.inputs[1]
        assert value is not None
        why = _tied_to(node, tied, plan, state)
        if why:
            message = f"its scales are as they were made: {why}"
            said.append(Diagnostic(Code.SCALES_KEPT, node.name or "", message))
        else:
            found.setdefault(value, []).append(node)
    return found, said


def _is_weight_only(node: ir.Node, plan: Plan, state: State) -> bool:
    decision = plan.nodes.get(node.name or "")
    return (
        node.op_type == "MatMul"
        and decision is not None
        and decision.verdict is Verdict.QUANTIZED
        and decision.inputs[0] is None
        and (node.name or "", 1) in (state.weights or {})
    )


def _tied_to(node: ir.Node, tied: set[str | None], plan: Plan, state: State) -> str:
    """What else the scales of a layer depend on; "" if nothing."""
    decision, weights = plan.nodes[node.name or ""], state.weights
    assert weights is not None
    spec, value = decision.inputs[1], node.inputs[1]
    assert spec is not None
    assert value is not None
    if node.name in tied:
        return "an embedding table shares them"
    if spec.scales is not None:
        return "they are quantized themselves (double_quant)"
    if spec.is_float8:
        return "its elements are 8-bit floats"
    if decision.algorithm == "gptq" and state.recipe.gptq.fp8_scales:
        return "they are powers of two apart (gptq.fp8_scales)"
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or not all(_is_weight_only(r, plan, state) for r in readers):
        return "its weight is also read in float"
    mine = weights[node.name or "", 1]
    if not all(_same(mine, weights[other.name or "", 1]) for other in readers):
        return "another layer rounds the same weight otherwise"
    return ""


def _same(a: QTensor, b: QTensor) -> bool:
    if a is b:
        return True
    if a.spec != b.spec or not np.array_equal(a.q, b.q) or not np.array_equal(a.scale, b.scale):
        return False
    if a.zero_point is None or b.zero_point is None:
        return a.zero_point is b.zero_point
    return np.array_equal(a.zero_point, b.zero_point)


def _key(model: ir.Model, state: State, data: str, options: DistillOptions) -> str:
    """A hash of all that determines what is learned."""
    chain = hashlib.sha256(common_facts(model, state, data, options).encode())
    assert state.weights is not None
    for site in sorted(state.weights):
        tensor = state.weights[site]
        chain.update(json.dumps([*site, str(tensor.spec)]).encode())
        for array in (tensor.q, tensor.scale, tensor.zero_point):
            if array is not None:
                chain.update(np.ascontiguousarray(array).view(np.uint8).data)
    return chain.hexdigest()


def _progress(state: State, steps: int) -> Callable[[int, float], None] | None:
    tell, began = state.progress, time.perf_counter()
    if tell is None:
        return None

    def progress(step: int, loss: float) -> None:
        left = (time.perf_counter() - began) / (step + 1) * (steps - step - 1)
        tell(f"distill-scales, step {step + 1}/{steps}, loss {loss:.4g}, about {left:.0f} s left")

    return progress


def _summary(found: Distilled, layers: int, steps: int) -> Diagnostic:
    judged = f"{found.held_out} samples held out" if found.held_out else "the only sample"
    values: dict[str, float] = {
        "layers": layers, "before": found.before, "after": found.after,
        "held_out": found.held_out, "steps": found.steps,
    }  # fmt: skip
    ended = "" if found.steps == steps else f", after which the loss was no number ({steps} asked)"
    taken = f"{found.steps} steps{ended}, {layers} layers"
    if found.tensors:
        message = f"loss on {judged} {found.before:.4g} -> {found.after:.4g}: {taken}"
        return Diagnostic(Code.SCALES_LEARNED, "distill", message, "", values)
    if not found.before:
        message = f"rounded weights give what they should on {judged}: nothing to learn"
        return Diagnostic(Code.SCALES_KEPT, "distill", message, "", values)
    message = f"the loss on {judged}, {found.before:.4g}, did not become smaller: {taken}"
    hint = "give more data, or a smaller distill.lr"
    return Diagnostic(Code.SCALES_KEPT, "distill", message, hint, values)

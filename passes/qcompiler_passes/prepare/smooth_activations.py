"""Move outliers of activations into the weights that read them (SmoothQuant)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.algorithms.smoothing import Candidate
from qcompiler.calibration.layers import layers_reading
from qcompiler.calibration.rescale import divided
from qcompiler.calibration.runner import Statistics, collect
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import Tape
from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import all_nodes
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.plan import Own, Plan
from qcompiler.recipe import SmoothingOptions
from qcompiler.targets.cost import cost_us, work_of
from qcompiler.targets.schema import Scheme
from qcompiler_passes.prepare.absorb import apply_edits
from qcompiler_passes.prepare.coverage import coverage
from qcompiler_passes.prepare.smoothing_groups import Group, find_groups, is_transformer
from qcompiler_passes.prepare.smoothing_search import Tried, search
from qcompiler_passes.prepare.trial_plan import trial_plan

__all__ = ["SmoothActivations"]

_ALPHA = 0.5  # what everybody uses where nothing is searched
_FREE = 0.97  # a loss below this share of the loss without smoothing is worth a fold
_PAID = 0.75  # and below this one a Mul
_PRICE = 0.25  # share of what quantizing the layers saves that a Mul may cost


@dataclasses.dataclass(frozen=True)
class SmoothActivations(Pass):
    """Divide an activation by a factor per channel and multiply the weights that read it.

    A trial of the plan tells which layers will be quantized and how, and so what has to be
    measured: calibration streams the data here, once for all of the compile, and ``calibrate``
    finds its ranges in the same statistics, rescaled. Every exponent is then tried on the sample
    of rows with the deployed types (:mod:`qcompiler.algorithms.smoothing`).

    Given, with factors s::

        %y = LayerNormalization(%x, %gain, %shift);  %z = MatMul(%y, %w)

    Result, with constants ``gain / s``, ``shift / s`` and ``s * w`` under the old names::

        %y = LayerNormalization(%x, %gain, %shift);  %z = MatMul(%y, %w)

    Where the value has readers that want it as it is, or nothing before it takes factors, a Mul by
    ``1 / s`` stands before the layers, if it helps much and costs little.
    """

    name: ClassVar[str] = "smooth-activations"
    phase: ClassVar[Phase] = Phase.PREPARE

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph; fill ``state.statistics`` and ``state.shapes`` on the way."""
        options = state.recipe.smoothing
        if options.alpha is None or not _has_data(state):
            return PassResult(modified=False)
        # a first look without running anything: most models have no such layers
        if options.alpha == "auto" and not _may_be_transformer(model):
            return PassResult(modified=False)
        plan = trial_plan(model, state)
        groups = list(find_groups(model.graph, plan, state.shapes or {}))
        if not groups or (options.alpha == "auto" and not is_transformer(groups)):
            return PassResult(modified=False)
        statistics = _measure(model, state, plan, groups)
        found = search(groups, statistics, options)
        chosen = {
            group.value.name or "": best
            for group, (best, _) in zip(groups, found, strict=True)
            if best is not None
        }
        told = list(coverage(chosen, statistics.summaries, statistics.labels))
        run = _Run(model, state, plan, statistics, options)
        for group, (best, said) in zip(groups, found, strict=True):
            run.smooth(group, best, said)
        return PassResult(run.modified, (*run.diagnostics, *told))


def _has_data(state: State) -> bool:
    """Whether activations may be quantized, and there is data to smooth them by."""
    wanted = {scheme.value for scheme in state.recipe.schemes}
    wanted |= {rule.scheme for rule in state.recipe.rules}
    if not wanted & {Scheme.STATIC.value, Scheme.TOKEN.value, Scheme.DYNAMIC.value}:
        return False
    return state.feeds is not None or state.statistics is not None


def _may_be_transformer(model: ir.Model) -> bool:
    operators = {node.op_type for node in all_nodes(model)}
    return "MatMul" in operators and bool(operators & {"LayerNormalization", "RMSNormalization"})


def _measure(model: ir.Model, state: State, plan: Plan, groups: Sequence[Group]) -> Statistics:
    """Statistics of all that will be stored and of what the groups read, from one stream."""
    wanted = [
        name
        for name, intent in plan.values.items()
        if isinstance(intent, Own) and not intent.spec.dynamic
    ]
    wanted = list(dict.fromkeys([*wanted, *(group.value.name or "" for group in groups)]))
    have = state.statistics
    if have is None or not set(wanted) <= set(have.summaries):
        have = collect(model, wanted, state.feeds or (), state.recipe.calibration)
    # rescaled in place below; saved statistics may be wanted again as they are
    state.statistics = dataclasses.replace(
        have,
        summaries=dict(have.summaries),
        layers=dict(have.layers),
        labels=dict(have.labels),
    )
    return state.statistics


class _Run:
    """Edits of one run, and what is said of them."""

    def __init__(
        self,
        model: ir.Model,
        state: State,
        plan: Plan,
        statistics: Statistics,
        options: SmoothingOptions,
    ) -> None:
        self.graph = model.graph
        self.state = state
        self.plan = plan
        self.given = state.plan
        self.statistics = statistics
        self.options = options
        self.modified = False
        self.diagnostics: list[Diagnostic] = []

    def smooth(self, group: Group, best: Candidate | None, tried: Tried) -> None:
        """Divide the group's activation, or say why not."""
        if best is None:
            self._refuse(group, group.refusal or "it was not measured", {})
            return
        without = tried[0].loss
        values = _values(best, tried)
        searched = self.options.alpha == "auto"
        if self.given is not None:
            searched = False  # the structure is the given plan's
        if searched and best.loss > _FREE * without:
            self._refuse(group, f"no exponent helps: error {without:.2e} of the outputs", values)
        elif group.fold is not None:
            self._fold(group, best, values)
        elif not self._pays(group, best, without, values):
            return
        else:
            self._insert(group, best, values)

    def _fold(self, group: Group, best: Candidate, values: dict[str, object]) -> None:
        assert group.fold is not None
        measured = [v for v, _ in group.fold.path if v.name in self.statistics.summaries]
        if measured:
            # a value on the way is stored as well: its statistics cannot all be divided
            self._refuse(group, f"%{measured[0].name} on the way is stored too", values)
            return
        if not apply_edits(self.graph, [*group.readers, *group.fold.edits], best.factors):
            self._refuse(group, "a constant would overflow its type", values)
            return
        into = group.fold.into
        self._note(group.value, group.value, best)
        where = "" if into is None else f"{into.op_type} {into.name}"
        self._tell(group, f"folded into {where}", {**values, "into": where})

    def _insert(self, group: Group, best: Candidate, values: dict[str, object]) -> None:
        value = group.value
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        if not apply_edits(self.graph, group.own_edits, best.factors):
            self._refuse(group, "a constant would overflow its type", values)
            return
        tape = Tape(self.graph, f"{value.name}/smooth")
        divided_value = tape.op(
            "Mul", value, (1.0 / best.factors).astype(dtype), name=f"{value.name}/smooth"
        )
        divided_value.shape, divided_value.type = value.shape, value.type
        self.graph.insert_before(min(group.layers, key=self._position), tape.nodes)
        inherit(tape.nodes, [group.layers[0]])
        for node in group.layers:
            node.replace_input_with(0, divided_value)
        if self.state.shapes is not None and value.name in self.state.shapes:
            shapes = dict(self.state.shapes)
            shapes[divided_value.name or ""] = shapes[value.name or ""]
            self.state.shapes = shapes
        self._note(value, divided_value, best)
        self._tell(group, "by a Mul before the layers", {**values, "into": "Mul"})

    def _position(self, node: ir.Node) -> int:
        for index, other in enumerate(self.graph):
            if other is node:
                return index
        return -1

    def _note(self, before: ir.Value, after: ir.Value, best: Candidate) -> None:
        """The statistics of ``after``, which is ``before`` divided."""
        statistics, old, new = self.statistics, before.name or "", after.name or ""
        statistics.summaries[new] = divided(statistics.summaries[old], best.factors, best.of_others)
        statistics.layers[new] = layers_reading(after)
        statistics.labels[new] = statistics.labels.get(old, f"%{old}")
        if new != old:
            statistics.layers[old] = layers_reading(before)
            if not self._is_stored(before):
                for table in (statistics.summaries, statistics.layers, statistics.labels):
                    table.pop(old)
        self.modified = True

    def _is_stored(self, value: ir.Value) -> bool:
        """Whether somebody still takes the value in low precision."""
        for use in value.uses():
            decision = self.plan.nodes.get(use.node.name or "")
            if decision is not None and use.idx < len(decision.inputs) and decision.inputs[use.idx]:
                return True
        return False

    def _pays(
        self, group: Group, best: Candidate, without: float, values: dict[str, object]
    ) -> bool:
        why = ""
        price = self._price(group.value)
        if self.given is not None and f"{group.value.name}/smooth" in self.given.nodes:
            return True  # the plan to follow was made with this Mul
        if self.given is not None:
            why = "the given plan has no Mul here"
        elif not group.insertable:
            why = "it comes in low precision"
        elif not self.options.insert:
            why = "the recipe allows no Mul"
        elif best.loss > _PAID * without and self.options.alpha == "auto":
            why = f"a Mul would only bring the error from {without:.2e} to {best.loss:.2e}"
        elif price is None or group.gain_us is None:
            why = "the target has no costs to judge a Mul by"
        elif price > _PRICE * group.gain_us:
            why = f"a Mul would cost {price:.0f} us of the {group.gain_us:.0f} us that int8 saves"
        if why:
            self._refuse(group, f"{group.refusal}, and {why}", values)
        return not why

    def _price(self, value: ir.Value) -> float | None:
        producer, shapes = value.producer(), self.state.shapes
        if producer is None or shapes is None:
            return None
        work = work_of(producer, shapes)
        if work is None:
            return None
        return cost_us(self.state.target, "float.Mul", dataclasses.replace(work, macs=0, kind=""))

    def _tell(self, group: Group, how: str, values: dict[str, object]) -> None:
        message = (
            f"smoothed with {values['choice']}, {how}: error {values['loss_without']:.2e} -> "
            f"{values['loss']:.2e} of the outputs of {len(group.layers)} layers"
        )
        self.diagnostics.append(Diagnostic(Code.SMOOTHED, self._where(group), message, "", values))

    def _refuse(self, group: Group, why: str, values: dict[str, object]) -> None:
        self.diagnostics.append(Diagnostic(Code.NOT_SMOOTHED, self._where(group), why, "", values))

    def _where(self, group: Group) -> str:
        name = group.value.name or ""
        return self.statistics.labels.get(name, f"%{name}")


def _values(best: Candidate, tried: Tried) -> dict[str, object]:
    losses = {item.alpha: item.loss for item in tried if item.alpha is not None}
    values: dict[str, object] = {
        "choice": str(best),
        "alpha": best.alpha,
        "quantile": best.quantile,
        "loss": best.loss,
        "loss_without": tried[0].loss,
        "losses": {f"{alpha:g}": loss for alpha, loss in sorted(losses.items())},
    }
    if losses:
        values["loss_best_alpha"] = min(losses.values())
    for alpha in (0.0, _ALPHA):
        if alpha in losses:
            values[f"loss_alpha_{alpha:g}"] = losses[alpha]
    return values

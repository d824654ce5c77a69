"""A compile that can be taken up again where plans are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from qcompiler.calibration.runner import Statistics
from qcompiler.diagnostics import Diagnostic
from qcompiler.pipeline.contract import Pass, Phase, State
from qcompiler.pipeline.run import PassTiming
from qcompiler.plan import Plan, Same
from qcompiler.recipe import Recipe

__all__ = ["Compiled", "RunPasses", "Stages"]

RunPasses = Callable[[Sequence[Pass], ir.Model, State], "list[PassTiming]"]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One way to compile the model.

    Attributes:
        model: The emitted model.
        state: What belongs to it.
        rounded: The model before Q and DQ came in.
        timings: Of its passes.
    """

    model: ir.Model
    state: State
    rounded: ir.Model
    timings: list[PassTiming]


class Stages:
    """Float passes run once; planning, rounding and lowering once for each set of pinned nodes.

    The calibration data is streamed at most once: every plan with more nodes in float stores a part
    of what the first plan stores, because the smallest low side of a minimum cut only shrinks when
    a node loses its low options.

    Attributes:
        timings: Of the passes before planning.
    """

    def __init__(
        self, reference: ir.Model, state: State, passes: Sequence[Pass], run: RunPasses
    ) -> None:
        """Run what comes before planning.

        Args:
            reference: The float model; left as it is.
            state: Filled by the passes before planning.
            passes: The whole pipeline.
            run: Runs passes on a model and a state.
        """
        self._run = run
        self._model = reference.clone()
        self._plan = [item for item in passes if Phase.DECIDE <= item.phase < Phase.APPLY]
        self._emit = [item for item in passes if item.phase >= Phase.APPLY]
        self._state = state
        self._given = state.plan
        early = [item for item in passes if item.phase < Phase.DECIDE]
        self.timings = run(early, self._model, state)

    def compile(self, pinned: Mapping[str, Diagnostic], recipe: Recipe | None = None) -> Compiled:
        """Plan with the pinned nodes in float, and all that follows.

        Args:
            pinned: The nodes, and why.
            recipe: Instead of the state's; what passes before planning and calibration read in it
                must be the same.

        Raises:
            QcError: What the passes raise.
        """
        start = self._state
        state = dataclasses.replace(
            start, recipe=recipe or start.recipe, pinned=dict(pinned),
            diagnostics=list(start.diagnostics), removed=dict(start.removed),
            plan=_edited(self._given, pinned),
        )  # fmt: skip
        model = self._model.clone()
        timings = [*self.timings, *self._run(self._plan, model, state)]
        rounded = model.clone()
        shapes = state.shapes
        timings += self._run(self._emit, model, state)
        if start.statistics is None:
            start.statistics, start.sample = state.statistics, state.sample
        if state.statistics is not None and state.plan is not None:
            _lend(state.statistics, state.plan)
        return Compiled(model, dataclasses.replace(state, shapes=shapes), rounded, timings)


def _edited(given: Plan | None, pinned: Mapping[str, Diagnostic]) -> Plan | None:
    """The user's plan with the pinned nodes in float."""
    if given is None or not pinned:
        return given
    nodes = dict(given.keep_float(*pinned).nodes)
    for name, why in pinned.items():
        nodes[name] = dataclasses.replace(nodes[name], reason=why)
    return dataclasses.replace(given, nodes=nodes)


def _lend(statistics: Statistics, plan: Plan) -> None:
    """Give values that share parameters the summary of their owner.

    In a later plan such a value may own its parameters, because the node that tied the two went
    back to float. Its channels may be others, so it is summarised by values alone.
    """
    for name, intent in plan.values.items():
        owner = plan.owner(name) if isinstance(intent, Same) else name
        if name not in statistics.summaries and owner in statistics.summaries:
            statistics.summaries[name] = statistics.summaries[owner]
            statistics.labels[name] = statistics.labels.get(owner, owner)
            statistics.layers[name] = ()

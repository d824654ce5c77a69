"""Try the steps for accuracy one by one and keep those that measurably help.

Every step is tried on top of those kept before it, on three quarters of the calibration data, and
judged on the last quarter, which nothing was fitted to.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx_ir as ir

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Feed, Pass, State
from qcompiler.recipe import Recipe
from qcompiler.runtime.session import open_session, run
from qcompiler.sensitivity.metric import Run, fidelity
from qcompiler.sensitivity.stages import Compiled, RunPasses
from qcompiler.tuning.steps import Step, plain, value_of
from qcompiler.tuning.trials import Trials

__all__ = ["Tuned", "is_tunable", "tune"]

Clock = Callable[[], float]

_HELD_OUT = 4  # each so manieth feed judges
_JUDGED = 64  # feeds that judge at most
_HELPS = 0.02  # share of the loss that a step has to take away to be kept
_PER_RUN = 2.0  # a compile streams the data in so many times what the float model takes
_SHARE = 0.5  # of the budget: if the first compile is expected to take more, nothing is tried


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        recipe: The recipe with the steps that help.
        rows: For :attr:`qcompiler.report.model.Report.steps`.
        diagnostics: What the user may want to know.
    """

    recipe: Recipe
    rows: tuple[dict[str, Any], ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()


def is_tunable(state: State) -> bool:
    """Whether the recipe asks for it and there is data to judge by."""
    return state.recipe.auto is not None and state.feeds is not None


def tune(
    reference: ir.Model,
    state: State,
    passes: Sequence[Pass],
    run_passes: RunPasses,
    progress: Callable[[str], None] | None = None,
    now: Clock = time.perf_counter,
) -> Tuned:
    """The recipe with the steps that measurably help on this model and data.

    Args:
        reference: The float model; left as it is.
        state: Target, recipe, form and data of the compile; left as it is.
        passes: The whole pipeline.
        run_passes: Runs passes on a model and a state.
        progress: Called with the name of each step.
        now: Seconds.

    Returns:
        The recipe; as it was when nothing could be tried. A step that time did not suffice for
        keeps what it is by default.

    Raises:
        QcError: What compiling without any step raises, and what the data raise.
    """
    assert state.recipe.auto is not None
    assert state.feeds is not None
    if state.plan is not None:  # its nodes are those of the recipe that it came from
        return _untried(
            state.recipe,
            "a plan was given, which says what is quantized",
            "compile without the plan to try them, or set the keys of the steps in the recipe",
        )
    feeds = state.feeds
    parts = feeds.split(_HELD_OUT) if feeds.reiterable else None
    if parts is None:
        return _untried(
            state.recipe,
            "wanted at least two feeds, as a list",
            "give calibration data as a list of some feeds",
        )
    seen, held_out = parts
    search = _Search(reference, state.recipe, held_out, progress or (lambda text: None), now)
    if search.is_too_long(seen.count_hint or 1):
        return search.result()
    trials = Trials(reference, dataclasses.replace(state, feeds=seen), passes, run_passes)
    return search.run(trials)


def _untried(recipe: Recipe, why: str, hint: str) -> Tuned:
    said = f"no step was tried, all are as by default: {why}"
    return Tuned(recipe, diagnostics=(Diagnostic(Code.STEPS_UNTRIED, "auto", said, hint),))


class _Search:
    """One search: what is on, what was measured, how much time is left."""

    def __init__(
        self,
        reference: ir.Model,
        recipe: Recipe,
        held_out: Iterable[Feed],
        progress: Callable[[str], None],
        now: Clock,
    ) -> None:
        assert recipe.auto is not None
        self.began, self.now, self.progress = now(), now, progress
        self.given, self.budget = recipe, recipe.auto.seconds
        self.recipe, self.steps = plain(recipe)
        self.feeds = [feed for _, feed in zip(range(_JUDGED), held_out, strict=False)]
        session = open_session(reference, code=Code.FLOAT_MODEL_FAILS)
        padding = Padding.of(reference, recipe.calibration.mask)
        self.run_float: Run = lambda feed: run(session, feed)
        self.metric = fidelity(self.run_float, self.feeds, padding)
        self.loss = 1.0
        self.longest = {False: 0.0, True: 0.0}  # seconds of a compile; True: that prepares anew
        self.rows: list[dict[str, Any]] = []
        self.cut: list[tuple[Step, float]] = []

    def is_too_long(self, feeds: int) -> bool:
        """Whether not even the first compile is worth it; then every step is cut."""
        started = self.now()
        self.run_float(self.feeds[0])
        expected = _PER_RUN * feeds * (self.now() - started)
        if expected <= _SHARE * self.budget:
            return False
        for step in self.steps:
            self._cut(step, expected)
        return True

    def run(self, trials: Trials) -> Tuned:
        """Try all."""
        self.progress("compile without steps for accuracy")
        started = self.now()
        first = trials.compile(self.recipe)
        plan = first.state.plan
        if plan is None or not plan.count().get("quantized"):
            hint = "the plan (`qcompile explain`) has each node's reason to stay in float"
            return _untried(self.given, "nothing is quantized, so there is nothing to mend", hint)
        self.loss = self._judged(first)
        self.longest = dict.fromkeys(self.longest, self.now() - started)
        self._note("none", None, started, "what the steps start from", None, self.loss)
        for step in self.steps:
            if why := step.idle(plan):
                self._note(step.name, None, self.now(), why, False)
                continue
            expected = self.longest[bool(step.changes)] + step.seconds(plan)
            if self.now() - self.began + expected > self.budget:
                self._cut(step, expected)
            else:
                self._try(trials, step)
        return self.result()

    def _try(self, trials: Trials, step: Step) -> None:
        self.progress(f"try {step.name}")
        started, recipe = self.now(), step.applied(self.recipe)
        try:
            if step.changes and not trials.changes(step.changes, recipe, streams=step.streams):
                self._note(step.name, None, started, "it has nothing to change here", False)
                return
            loss = self._judged(trials.compile(recipe))
        except QcError as error:
            why = f"{error.diagnostic.code.id} {error.diagnostic.message}"
            self._note(step.name, None, started, why, False)
            return
        if not step.layer_seconds:
            anew = bool(step.changes)
            self.longest[anew] = max(self.longest[anew], self.now() - started)
        helps = loss < (1.0 - _HELPS) * self.loss
        share = 1.0 - loss / self.loss if self.loss else 0.0
        why = f"{abs(share):.0%} {'less' if share >= 0 else 'more'} loss"
        if not helps and share >= 0:
            why += f", wanted {_HELPS:.0%}"
        before = self.loss
        if helps:
            self.recipe, self.loss = recipe, loss
        self._note(step.name, before, started, why, helps, loss)

    def _judged(self, compiled: Compiled) -> float:
        session = open_session(compiled.model, settings=compiled.state.session)
        return 1.0 - self.metric(lambda feed: run(session, feed, code=Code.DOES_NOT_LOAD))

    def _note(
        self, name: str, before: float | None, started: float, why: str, kept: bool | None,
        after: float | None = None,
    ) -> None:  # fmt: skip
        self.rows.append(
            {
                "step": name,
                "before": None if before is None else 1.0 - before,
                "after": None if after is None else 1.0 - after,
                "seconds": self.now() - started,
                "kept": kept,
                "why": why,
            }
        )

    def _cut(self, step: Step, expected: float) -> None:
        """Leave the step as it is by default."""
        self.cut.append((step, expected))
        default = value_of(self.given, step.key) == step.on
        if default:
            self.recipe = step.applied(self.recipe)
        left = max(self.budget - (self.now() - self.began), 0.0)
        why = f"not tried: about {expected:.0f} s, {left:.0f} s left"
        if default:
            why += "; on by default"
        self._note(step.name, None, self.now(), why, default)

    def result(self) -> Tuned:
        """What was found."""
        if not self.cut:
            return Tuned(self.recipe, tuple(self.rows))
        names = [step.name for step, _ in self.cut]
        wanted = self.now() - self.began + sum(seconds for _, seconds in self.cut)
        said = Diagnostic(
            Code.STEPS_CUT,
            "auto",
            f"{len(names)} of {len(self.steps)} steps were not tried for want of time:"
            f" {', '.join(names)}",
            f"set auto.seconds to about {math.ceil(wanted)}",
            {"steps": names, "seconds": self.budget, "wanted": wanted},
        )
        return Tuned(self.recipe, tuple(self.rows), (said,))

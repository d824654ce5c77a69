"""Return the most damaging nodes to float until the model is good enough."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Feed
from qcompiler.plan import Verdict
from qcompiler.recipe import Recipe
from qcompiler.runtime.session import open_session, run
from qcompiler.sensitivity.metric import Judge, MetricFailed
from qcompiler.sensitivity.ranking import Ranking, rank
from qcompiler.sensitivity.search import fewest
from qcompiler.sensitivity.stages import Compiled, Stages

__all__ = ["Returned", "is_wanted", "return_to_float"]

Progress = Callable[[str], None]

_ROUNDING = 1e-9  # a metric of exact artifacts differs by so much from float's


@dataclasses.dataclass(frozen=True)
class Returned:
    """What came of it.

    Attributes:
        compiled: The artifact to keep.
        ranking: Damage of each node of the first plan; None when it was not needed.
        nodes: Nodes that went back to float.
        diagnostics: What the user may want to know.
    """

    compiled: Compiled
    ranking: Ranking | None
    nodes: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()

    def layers(self) -> tuple[dict[str, Any], ...]:
        """Rows for :attr:`qcompiler.report.model.Report.layers`."""
        if self.ranking is None:
            return ()
        gone = set(self.nodes)
        return tuple(
            {"node": node, "sensitivity": damage, **({"returned": True} if node in gone else {})}
            for node, damage in self.ranking.damage.items()
        )


def is_wanted(recipe: Recipe) -> bool:
    """Whether the recipe asks for anything that this package does."""
    return recipe.max_drop is not None or bool(recipe.keep_float) or recipe.sensitivity


def return_to_float(
    stages: Stages,
    recipe: Recipe,
    feeds: Sequence[Feed],
    judge: Callable[[], Judge],
    progress: Progress | None = None,
) -> Returned:
    """Compile, and compile again with more nodes in float while the recipe's target is missed.

    Args:
        stages: Compiles with nodes pinned.
        recipe: ``max_drop``, ``keep_float`` and ``sensitivity`` are used.
        feeds: Where samples for the ranking come from; empty takes the planner's sample.
        judge: Makes the judge; called only when ``max_drop`` is set.
        progress: Called with the name of each step.

    Returns:
        The artifact with the fewest nodes in float that holds the target; else the best one seen.

    Raises:
        QcError: What compiling raises.
    """
    return _Search(stages, recipe, feeds, progress or (lambda text: None)).run(judge)


class _Search:
    """One search over one ranking; remembers every artifact's score and the best artifact."""

    def __init__(
        self, stages: Stages, recipe: Recipe, feeds: Sequence[Feed], progress: Progress
    ) -> None:
        self.stages = stages
        self.recipe = recipe
        self.progress = progress
        progress("compile")
        self.first = stages.compile({})
        plan = self.first.state.plan
        found = () if plan is None else plan
        self.nodes = [item.node for item in found if item.verdict is Verdict.QUANTIZED]
        sample = self.first.state.sample
        self.feeds = list(feeds) or ([sample] if sample is not None else [])
        self.ranking: Ranking | None = None
        self.scores: dict[int, float] = {}
        self.best = (0, self.first)
        self.said: list[Diagnostic] = []

    def run(self, make_judge: Callable[[], Judge]) -> Returned:
        if self.recipe.sensitivity or self.recipe.keep_float:
            self._rank()
        low = min(self.recipe.keep_float or 0, len(self.nodes))
        if self.recipe.max_drop is None:
            return self._result(low, self._compiled(low))
        try:
            judge = make_judge()
        except MetricFailed as error:
            self.said.append(error.diagnostic)
            return self._result(low, self._compiled(low))
        return self._until_it_holds(judge, low, self.recipe.max_drop)

    def _until_it_holds(self, judge: Judge, low: int, max_drop: float) -> Returned:
        def holds(count: int) -> bool:
            compiled = self._compiled(count)
            if count == low:
                self.best = (count, compiled)
            self.progress(f"evaluate with {count} of {len(self.nodes)} nodes returned to float")
            session = open_session(compiled.model, settings=compiled.state.session)
            score = judge.score(lambda feed: run(session, feed, code=Code.DOES_NOT_LOAD))
            held = [self._holds(judge, s, max_drop) for s in (score, self.scores.get(self.best[0]))]
            better = held[1] is None or (held[0] and (not held[1] or count < self.best[0]))
            if better or (not any(held) and score > self.scores[self.best[0]]):
                self.best = (count, compiled)
            self.scores[count] = score
            return bool(held[0])

        try:
            found = fewest(low, len(self.nodes), holds)
        except MetricFailed as error:
            self.said.append(self._kept_after(error))
            return self._result(*self.best)
        self.said.append(self._outcome(judge, found, max_drop))
        if (odd := self._not_monotone()) is not None:
            self.said.append(odd)
        return self._result(*self.best)

    @staticmethod
    def _holds(judge: Judge, score: float | None, max_drop: float) -> bool | None:
        return None if score is None else judge.drop(score) <= max_drop + _ROUNDING

    def _compiled(self, count: int) -> Compiled:
        if count == 0:
            return self.first
        self.progress(f"compile with {count} of {len(self.nodes)} nodes in float")
        return self.stages.compile({node: self._why(node) for node in self._order()[:count]})

    def _order(self) -> Sequence[str]:
        if self.ranking is None:
            self._rank()
        return self.nodes if self.ranking is None else self.ranking.order

    def _rank(self) -> None:
        self.progress("measure sensitivity")
        try:
            if not self.feeds:
                raise QcError(Code.SENSITIVITY_UNKNOWN, "sensitivity", "there is no feed")
            self.ranking = rank(self.first.rounded, self.first.state, self.feeds)
        except QcError as error:
            self.said.append(
                Diagnostic(
                    Code.SENSITIVITY_UNKNOWN,
                    "sensitivity",
                    f"cannot be measured: {error.diagnostic.message};"
                    " nodes are taken in the order of the graph",
                    error.diagnostic.hint,
                )
            )

    def _why(self, node: str) -> Diagnostic:
        order = list(self._order())
        place = order.index(node) + 1
        if self.ranking is None:
            return Diagnostic(
                Code.SENSITIVE, node, f"returned to float as number {place} of {len(order)}"
            )
        damage = self.ranking.damage[node]
        return Diagnostic(
            Code.SENSITIVE,
            node,
            f"quantizing it alone moves the output by {damage:.2%}, number {place} of {len(order)}",
            values={"sensitivity": damage, "rank": place},
        )

    def _outcome(self, judge: Judge, found: int | None, max_drop: float) -> Diagnostic:
        count, score = self.best[0], self.scores[self.best[0]]
        drop = judge.drop(score)
        values = {
            "metric": judge.name, "float": judge.reference, "score": score, "drop": drop,
            "max_drop": max_drop, "returned": count, "evaluations": judge.evaluations,
        }  # fmt: skip
        said = (
            f"{judge.name} {score:.6g}, float {judge.reference:.6g}: a {judge.kind} drop of"
            f" {drop:.3g}, {count} of {len(self.nodes)} nodes returned to float"
            f" in {judge.evaluations} evaluation{'s' * (judge.evaluations != 1)}"
        )
        if judge.generated:
            said += " on a generated input, since there are no calibration data"
        if found is not None:
            return Diagnostic(Code.DROP_HELD, "max_drop", f"{said}; wanted at most {max_drop:g}",
                              values=values)  # fmt: skip
        return Diagnostic(
            Code.DROP_MISSED,
            "max_drop",
            f"{said}; wanted at most {max_drop:g}, so {drop - max_drop:.3g} too much;"
            " this is the best that was found",
            "allow a larger drop, give more calibration data, or mend the metric"
            + (
                "; absorb_biases = 'deviation' clips, also where layers then return to float"
                if self.recipe.absorb_biases == "deviation"
                else ""
            ),
            values,
        )

    def _kept_after(self, error: MetricFailed) -> Diagnostic:
        said = error.diagnostic
        what = "without a score"
        if self.scores:
            what = f"with {self.scores[self.best[0]]:.6g}, {self.best[0]} nodes returned to float"
        return dataclasses.replace(
            said, message=f"{said.message}; the best artifact so far is kept ({what})"
        )

    def _not_monotone(self) -> Diagnostic | None:
        """The search takes it that more nodes in float never hurt; say where they did."""
        seen = sorted(self.scores.items())
        for (few, better), (more, worse) in itertools.pairwise(seen):
            if worse < better - 1e-3 * abs(better):
                return Diagnostic(
                    Code.NOT_MONOTONE,
                    "max_drop",
                    f"{more} nodes in float gave {worse:.6g}, {few} gave {better:.6g}: fewer nodes"
                    " in float than were tried may do",
                    values={str(count): score for count, score in seen},
                )
        return None

    def _result(self, count: int, compiled: Compiled) -> Returned:
        nodes = tuple(self._order()[:count]) if count else ()
        return Returned(compiled, self.ranking, nodes, tuple(self.said))

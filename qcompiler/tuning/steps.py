"""The steps for accuracy that ``auto`` tries, and the keys of the recipe that turn them on."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

from qcompiler.plan import Plan, Verdict
from qcompiler.recipe import Recipe

__all__ = ["STEPS", "Step", "plain", "value_of"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: For the report.
        key: Key of the recipe, with a dot into a table.
        on: Its value with the step.
        off: Its value without any step on this key.
        operators: It does something for these; empty: for all.
        changes: Name of a pass before planning; if it changes nothing, neither does the step.
        streams: That pass reads all the data.
        layer_seconds: What it takes for one layer on top of a compile: measured, on one processor.
    """

    name: str
    key: str
    on: Any
    off: Any
    operators: frozenset[str] = frozenset()
    changes: str = ""
    streams: bool = False
    layer_seconds: float = 0.0

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this step."""
        return _with(recipe, self.key, self.on)

    def idle(self, plan: Plan) -> str:
        """Why it would do nothing under a plan; empty if it may do something."""
        found = quantized(plan)
        if self.operators and not self.operators & found.keys():
            return f"no {' or '.join(sorted(self.operators))} is quantized"
        if self.layer_seconds and importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        return ""

    def seconds(self, plan: Plan) -> float:
        """What it is expected to take on top of a compile."""
        return self.layer_seconds * sum(
            count
            for operator, count in quantized(plan).items()
            if operator in (self.operators or {"Conv", "MatMul"})
        )


_CONV = frozenset({"Conv"})

# By what they win for each second, most first, as measured on the nets of docs/benchmarks.md.
STEPS = (
    Step("ranges by the error of layers", "calibration.method", "auto", "minmax"),
    Step("smoothing", "smoothing.alpha", "auto", None, changes="smooth-activations",
         streams=True),
    Step("biases corrected by means", "correct_biases", True, False, _CONV),
    Step("rounding by second moments", "weights.rounding", "moment", "nearest", _CONV),
    Step("gates equalized", "equalize_gates", True, False, changes="equalize-gates"),
    Step("layers equalized", "equalize_layers", True, False, changes="equalize-layers"),
    Step("biases absorbed", "absorb_biases", True, False, changes="absorb-biases"),
    Step("biases absorbed, clipping", "absorb_biases", "deviation", False, changes="absorb-biases"),
    Step("biases corrected as measured", "correct_biases", "empirical", False, _CONV,
         layer_seconds=0.1),
    Step("rounding learned (AdaRound)", "weights.rounding", "adaround", "nearest",
         layer_seconds=1.6),
)  # fmt: skip


def quantized(plan: Plan) -> dict[str, int]:
    """Number of quantized nodes by operator."""
    found: dict[str, int] = {}
    for decision in plan:
        if decision.verdict is Verdict.QUANTIZED:
            found[decision.op] = found.get(decision.op, 0) + 1
    return found


def plain(recipe: Recipe) -> tuple[Recipe, tuple[Step, ...]]:
    """The recipe without any step, and the steps that are left to try.

    A key whose value is not the default is what the user wants: it stays, and no step touches it.
    """
    default = Recipe()
    free = tuple(s for s in STEPS if value_of(recipe, s.key) == value_of(default, s.key))
    for step in free:
        recipe = _with(recipe, step.key, step.off)
    return recipe, free


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a key, with a dot into a table."""
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _with(recipe: Recipe, key: str, value: Any) -> Recipe:
    changes: dict[str, Any] = {}
    table = changes
    *tables, last = _parts(key)
    for part in tables:
        table = table.setdefault(part, {})
    table[last] = value
    return recipe.changed(**changes)


def _parts(key: str) -> Iterator[str]:
    yield from key.split(".")

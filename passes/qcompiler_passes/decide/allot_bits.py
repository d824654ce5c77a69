"""Choose the bits of each weight under a budget for all of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import onnx_ir as ir

from qcompiler.analysis.budget import choose_under_budget
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Fact, Feed, Pass, PassResult, Phase, State
from qcompiler.recipe import Recipe
from qcompiler_passes.decide.bit_options import BitLayer, BitRounding, bit_layers
from qcompiler_passes.weights.staged import CountedFeeds

__all__ = ["AllotBits"]

_SAMPLES = 8  # each costs a forward and a backward pass
_TRIED = 2  # samples on which choices are compared, by a forward pass each
_DISTRUST = (1.0, 2.0, 4.0)  # of errors larger than those of equal bits
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class AllotBits(Pass):
    """Give each weight-only layer bits of its own, where the recipe has a budget for all of them.

    That is ``bits_budget``, bits per weight on average, or ``megabytes_budget``, both of what is
    stored: integers, scales and zero points.

    What an option would do to the model's outputs comes from gradients on some of the calibration
    data (:mod:`qcompiler.sensitivity.gradients`), with weights rounded in the layer's own groups
    without data, which ranks options of other algorithms as well. Where an operator behind a layer
    lets no gradient through (LSTM, If, Loop) each of its options is tried. The choice is exact.
    Layers whose rule says the bits keep them, and count.

    Gradients know small errors: they make light of those of few bits, and the choice falls on what
    they underrate. So several choices are made, fewer bits than all could have being taken for one
    to four times as bad, and that is kept which moves the outputs least
    (:mod:`qcompiler.sensitivity.trials`). Equal bits for all are among them.
    """

    name: ClassVar[str] = "allot-bits"
    phase: ClassVar[Phase] = Phase.DECIDE
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.bits``; the model is untouched.

        Raises:
            QcError: QC405 the budget is too small, or no layer may choose; QC410 there is no data;
                QC411 torch is not installed.
        """
        key = _budget_key(state.recipe)
        if key is None or state.plan is not None:
            return PassResult(modified=False)
        layers = {str(layer.node.name): layer for layer in bit_layers(model, state)}
        if not layers:
            raise QcError(
                Code.TARGET_CANNOT,
                key,
                "found no layer that is stored in low-bit weights alone",
                "choose a weight-only recipe, as 'weight-int4'",
            )
        costs = {
            name: {bits: layer.stored_bytes(bits) for bits in layer.specs}
            for name, layer in layers.items()
        }
        weights = sum(layer.size for layer in layers.values())
        budget = _bytes_to_spend(key, state.recipe, costs, weights)
        rounding = BitRounding(layers, state)
        open_layers = {name: layer for name, layer in layers.items() if len(layer.specs) > 1}
        feeds = CountedFeeds(_again(state, key) if open_layers else ())
        samples = list(itertools.islice(feeds, _SAMPLES))
        damages = {name: dict.fromkeys(layer.specs, 0.0) for name, layer in layers.items()}
        tried = ""
        if open_layers:
            found, tried = _damages(model, open_layers, rounding, samples, key, state)
            damages |= found
        even = _even_bits(layers, costs, budget)
        choices = _choices(damages, costs, budget, even)
        moved = _moved(model, rounding, choices, samples, state)
        best = moved.index(min(moved))
        chosen = state.bits = choices[best]
        compared = _compared(moved, best, even)
        taken = sum(costs[name][bits] for name, bits in chosen.items())
        mean = 8 * taken / weights
        counts = Counter(chosen.values())
        shown = ", ".join(f"{counts[bits]} of {bits} bits" for bits in sorted(counts))
        told = Diagnostic(
            Code.BITS_ALLOTTED,
            key,
            f"{taken / _MEGABYTE:.3f} MB, {mean:.3f} bits per weight, scales included, within"
            f" {getattr(state.recipe, key):g}: {shown}{compared}{tried}",
            "",
            {"bits": chosen, "mean": mean, "bytes": taken, "damages": damages, "moved": moved},
        )
        return PassResult(modified=False, diagnostics=(told, *feeds.too_few(key)))


def _budget_key(recipe: Recipe) -> Literal["bits_budget", "megabytes_budget"] | None:
    if recipe.bits_budget is not None:
        return "bits_budget"
    return "megabytes_budget" if recipe.megabytes_budget is not None else None


def _bytes_to_spend(
    key: str, recipe: Recipe, costs: Mapping[str, Mapping[int, float]], weights: int
) -> float:
    """The budget in bytes; an error where the cheapest options do not fit."""
    in_megabytes = key == "megabytes_budget"
    unit = _MEGABYTE if in_megabytes else weights / 8
    budget: float = getattr(recipe, key)
    least = sum(min(found.values()) for found in costs.values()) / unit
    if least > budget:
        raise QcError(
            Code.TARGET_CANNOT,
            key,
            f"found {budget:g} {'MB for' if in_megabytes else 'bits for each of'} {weights}"
            " weights, scales and zero points included; the options"
            f" {', '.join(map(str, recipe.bits_choices))} need {_up(least):g} at least",
            f"give {_up(least):g} or more, fewer bits in bits_choices, or a larger group_size",
            least=least,
        )
    return budget * unit


def _up(number: float) -> float:
    """The next thousandth, which a user may copy."""
    return math.ceil(number * 1000) / 1000


def _damages(
    model: ir.Model,
    layers: Mapping[str, BitLayer],
    rounding: BitRounding,
    samples: Sequence[Feed],
    key: str,
    state: State,
) -> tuple[dict[str, dict[int, float]], str]:
    """What each option of each layer does to the outputs, and a word on how that was found out."""
    try:
        from qcompiler.sensitivity.gradients import weight_damages
        from qcompiler.sensitivity.trials import divergences
    except ImportError as missing:
        raise QcError(
            Code.USAGE,
            key,
            "needs torch, which is not installed",
            "pip install torch, or give bits by rules",
        ) from missing

    rounding.prepare(layers)
    options = sorted({bits for layer in layers.values() for bits in layer.specs})
    nodes = [layer.node for layer in layers.values()]
    damages = weight_damages(
        model, nodes, samples, options, rounding.error,
        seed=state.recipe.seed, progress=state.progress,
    )  # fmt: skip
    found = {
        name: {bits: of_layer[bits] for bits in layers[name].specs}
        for name, of_layer in damages.found.items()
    }
    if not damages.unreached:
        return found, ""
    names = [str(node.name) for node in damages.unreached]
    alone = [(name, bits) for name in names for bits in layers[name].specs]
    trials = [rounding.trial({name: bits}) for name, bits in alone]
    moved = divergences(model, samples[:_TRIED], trials, progress=state.progress)
    for (name, bits), damage in zip(alone, moved, strict=True):
        found.setdefault(name, {})[bits] = damage
    why = next(iter(damages.unreached.values())).diagnostic
    return found, f"; {len(names)} layers tried, {why.where} has no gradient ({why.message})"


def _moved(
    model: ir.Model,
    rounding: BitRounding,
    choices: Sequence[Mapping[str, int]],
    samples: Sequence[Feed],
    state: State,
) -> list[float]:
    """How far the outputs move under each choice; not asked where there is only one."""
    if len(choices) == 1:
        return [0.0]
    from qcompiler.sensitivity.trials import divergences

    trials = [rounding.trial(item) for item in choices]
    return divergences(model, samples[:_TRIED], trials, progress=state.progress)


def _compared(moved: Sequence[float], best: int, even: object) -> str:
    """What the choice did beside equal bits, which are the last that was tried."""
    if even is None:
        return "; no equal bits suit all layers, so this was not compared with any"
    if len(moved) == 1:
        return ""
    return f"; damage {moved[best] / (moved[-1] or 1.0):.2f} of that of equal bits"


def _even_bits(
    layers: Mapping[str, BitLayer], costs: Mapping[str, Mapping[int, float]], budget: float
) -> dict[str, int] | None:
    """The most bits that all layers with a choice can have alike; None when that does not fit."""
    options = {bits for layer in layers.values() for bits in layer.specs}
    for bits in sorted(options, reverse=True):
        even = {
            name: bits if bits in layer.specs else next(iter(layer.specs))
            for name, layer in layers.items()
            if bits in layer.specs or len(layer.specs) == 1
        }
        if len(even) == len(layers) and sum(costs[n][b] for n, b in even.items()) <= budget:
            return even
    return None


def _choices(
    damages: Mapping[str, Mapping[int, float]],
    costs: Mapping[str, Mapping[int, float]],
    budget: float,
    even: Mapping[str, int] | None,
) -> list[dict[str, int]]:
    """Choices within the budget, each once; equal bits, where they fit, come last."""
    found = []
    for factor in _DISTRUST if even else _DISTRUST[:1]:
        weighed = {
            name: {
                bits: damage * (factor if even and bits < even[name] else 1.0)
                for bits, damage in options.items()
            }
            for name, options in damages.items()
        }
        choice = choose_under_budget(weighed, costs, budget)
        assert choice is not None, "the least fits"
        if choice not in found and choice != even:
            found.append(choice)
    return [*found, dict(even)] if even else found


def _again(state: State, key: str) -> Iterable[Feed]:
    if state.feeds is None or not state.feeds.reiterable:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            key,
            "found no data that can be read again, wanted calibration data",
            "give calibration data as a list or a callable, or bits by rules",
        )
    return state.feeds

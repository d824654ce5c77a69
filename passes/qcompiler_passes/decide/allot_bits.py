"""Choose the bits of each weight under a budget for all of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.rtn import CLIP_RATIOS, round_to_nearest
from qcompiler.analysis.budget import choose_under_budget
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import constant
from qcompiler.ir.walk import all_nodes
from qcompiler.numerics.nbits import stored_bytes
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Feed, Pass, PassResult, Phase, State
from qcompiler.recipe import Recipe
from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.schema import Scheme
from qcompiler_passes.decide.rows import Rows
from qcompiler_passes.decide.wishes import Wish, pin, wishes_of
from qcompiler_passes.weights.staged import CountedFeeds

__all__ = ["AllotBits"]

_SAMPLES = 8  # each costs a forward and a backward pass
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True)
class AllotBits(Pass):
    """Give each weight-only layer bits of its own, where the recipe has a budget for all of them.

    That is ``bits_budget``, bits per weight on average, or ``megabytes_budget``, both of what is
    stored: integers, scales and zero points.

    What an option would do to the model's outputs comes from gradients on some of the calibration
    data (:mod:`qcompiler.sensitivity.gradients`), with weights rounded to nearest in the layer's
    own groups, which ranks options of other algorithms as well. The choice is exact. Layers whose
    rule says the bits keep them, and count.
    """

    name: ClassVar[str] = "allot-bits"
    phase: ClassVar[Phase] = Phase.DECIDE
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.bits``; the model is untouched.

        Raises:
            QcError: QC302 an operator has no differentiable form; QC405 the budget is too small, or
                no layer may choose; QC410 there is no data; QC411 torch is not installed.
        """
        key = _budget_key(state.recipe)
        if key is None or state.plan is not None:
            return PassResult(modified=False)
        layers = {str(layer.node.name): layer for layer in _layers(model, state)}
        if not layers:
            raise QcError(
                Code.TARGET_CANNOT,
                key,
                "found no layer that is stored in low-bit weights alone",
                "choose a weight-only recipe, as 'weight-int4'",
            )
        weights = sum(layer.size for layer in layers.values())
        # bytes of what the user counts in
        unit = _MEGABYTE if key == "megabytes_budget" else weights / 8
        budget = getattr(state.recipe, key)
        costs = {
            name: {bits: stored_bytes(spec, layer.shape) for bits, spec in layer.specs.items()}
            for name, layer in layers.items()
        }
        least = sum(min(found.values()) for found in costs.values())
        if least > budget * unit:
            what = "MB for" if key == "megabytes_budget" else "bits for each of"
            raise QcError(
                Code.TARGET_CANNOT,
                key,
                f"found {budget:g} {what} {weights} weights, scales and zero points included; the"
                f" options {', '.join(map(str, state.recipe.bits_choices))} need"
                f" {_up(least / unit):g} at least",
                f"give {_up(least / unit):g} or more, fewer bits in bits_choices, or a larger"
                " group_size",
                least=least / unit,
            )
        is_open = any(len(layer.specs) > 1 for layer in layers.values())
        feeds = CountedFeeds(_again(state, key) if is_open else ())
        damages = _damages(model, state, layers, key, feeds)
        chosen = choose_under_budget(damages, costs, budget * unit)
        assert chosen is not None, "the least fits"
        state.bits = chosen
        taken = sum(costs[name][bits] for name, bits in chosen.items())
        mean = 8 * taken / weights
        counts = Counter(chosen.values())
        shown = ", ".join(f"{counts[bits]} of {bits} bits" for bits in sorted(counts))
        told = Diagnostic(
            Code.BITS_ALLOTTED,
            key,
            f"{taken / _MEGABYTE:.3f} MB, {mean:.3f} bits per weight, scales included, within"
            f" {budget:g}: {shown}",
            "",
            {"bits": chosen, "mean": mean, "bytes": taken, "damages": damages},
        )
        return PassResult(modified=False, diagnostics=(told, *feeds.too_few(key)))


def _budget_key(recipe: Recipe) -> Literal["bits_budget", "megabytes_budget"] | None:
    if recipe.bits_budget is not None:
        return "bits_budget"
    return "megabytes_budget" if recipe.megabytes_budget is not None else None


def _up(number: float) -> float:
    """The next thousandth, which a user may copy."""
    return math.ceil(number * 1000) / 1000


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A weight and how it may be stored, by bits."""

    node: ir.Node
    shape: tuple[int, int]
    specs: Mapping[int, QSpec]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _layers(model: ir.Model, state: State) -> Iterator[_Layer]:
    """MatMul layers that may be stored in one of the recipe's choices."""
    assert state.shapes is not None
    recipe = state.recipe
    wishes = pin(wishes_of(all_nodes(model), recipe, state.removed), state.pinned)
    rows = Rows(state.target, state.form, state.shapes, embeddings=recipe.embeddings)
    for node in model.graph:
        wish = wishes[str(node.name)]
        if node.op_type != "MatMul" or Scheme.WEIGHT not in wish.schemes:
            continue
        fixed = wish.rule is not None and wish.rule.bits is not None
        choices = (wish.bits,) if fixed else recipe.bits_choices
        specs = {bits: spec for bits in choices if (spec := _spec(rows, node, wish, bits))}
        array = constant(node.inputs[1]) if specs else None
        if array is not None and array.ndim == 2:
            yield _Layer(node, (array.shape[0], array.shape[1]), specs)


def _spec(rows: Rows, node: ir.Node, wish: Wish, bits: int) -> QSpec | None:
    """How the weight is stored in so many bits; None when no kernel takes it."""
    wish = dataclasses.replace(wish, bits=bits)
    for row in rows.of(node):
        if row.scheme is Scheme.WEIGHT and rows.refusal(row, node, wish) is None:
            spec = rows.weight_spec(row, wish)
            if spec is not None and spec.granularity in (Granularity.BLOCK, Granularity.CHANNEL):
                return spec
    return None


def _damages(
    model: ir.Model,
    state: State,
    layers: Mapping[str, _Layer],
    key: str,
    feeds: Iterable[Feed],
) -> dict[str, dict[int, float]]:
    open_choices = {name: layer for name, layer in layers.items() if len(layer.specs) > 1}
    damages = {name: dict.fromkeys(layer.specs, 0.0) for name, layer in layers.items()}
    if not open_choices:
        return damages
    try:
        from qcompiler.sensitivity.gradients import weight_damages
    except ImportError as missing:
        raise QcError(
            Code.USAGE,
            key,
            "needs torch, which is not installed",
            "pip install torch, or give bits by rules",
        ) from missing

    rounded: dict[tuple[str, int], QTensor] = {}  # two bytes a number, the error has four

    def error(node: ir.Node, bits: int) -> npt.NDArray[np.float32]:
        array = constant(node.inputs[1])
        assert array is not None
        weight = np.asarray(array, np.float32)
        name = str(node.name)
        spec = layers[name].specs.get(bits)
        if spec is None:
            return np.zeros_like(weight)
        if (name, bits) not in rounded:
            clip = CLIP_RATIOS if bits <= 4 else (1.0,)
            found = round_to_nearest(weight, spec, clip_ratios=clip)
            rounded[name, bits] = dataclasses.replace(found, q=found.q.astype(np.int16))
        return rounded[name, bits].dequantize() - weight

    options = sorted({bits for layer in open_choices.values() for bits in layer.specs})
    found = weight_damages(
        model.graph,
        [layer.node for layer in open_choices.values()],
        list(itertools.islice(feeds, _SAMPLES)),
        options,
        error,
        seed=state.recipe.seed,
    )
    for name, layer in open_choices.items():
        damages[name] = {bits: found[name][bits] for bits in layer.specs}
    return damages


def _again(state: State, key: str) -> Iterable[Feed]:
    if state.feeds is None or not state.feeds.reiterable:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            key,
            "found no data that can be read again, wanted calibration data",
            "give calibration data as a list or a callable, or bits by rules",
        )
    return state.feeds

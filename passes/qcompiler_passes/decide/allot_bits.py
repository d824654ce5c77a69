"""Choose the bits of each weight under a budget for all of them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.rtn import CLIP_RATIOS, round_to_nearest
from qcompiler.analysis.budget import choose_under_budget
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import constant
from qcompiler.ir.walk import all_nodes
from qcompiler.pipeline.contract import Fact, Feed, Pass, PassResult, Phase, State
from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.schema import Scheme
from qcompiler_passes.decide.rows import Rows
from qcompiler_passes.decide.wishes import Wish, pin, wishes_of

__all__ = ["AllotBits"]

_SAMPLES = 8  # each costs a forward and a backward pass
_SCALE_BITS = 32


@dataclasses.dataclass(frozen=True)
class AllotBits(Pass):
    """Give each weight-only layer bits of its own, where the recipe has a ``bits_budget``.

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
        budget = state.recipe.bits_budget
        if budget is None or state.plan is not None:
            return PassResult(modified=False)
        layers = {str(layer.node.name): layer for layer in _layers(model, state)}
        if not layers:
            raise QcError(
                Code.TARGET_CANNOT,
                "bits_budget",
                "found no layer that is stored in low-bit weights alone",
                "choose a weight-only recipe, as 'weight-int4'",
            )
        costs = {
            name: {bits: layer.stored_bits(bits) for bits in layer.specs}
            for name, layer in layers.items()
        }
        damages = _damages(model, state, layers)
        total = sum(layer.size for layer in layers.values())
        chosen = choose_under_budget(damages, costs, budget * total)
        if chosen is None:
            least = sum(min(found.values()) for found in costs.values()) / total
            raise QcError(
                Code.TARGET_CANNOT,
                "bits_budget",
                f"found {budget:g} bits per weight, scales and zero points included; the options"
                f" {', '.join(map(str, state.recipe.bits_choices))} need {least:.3f} at least",
                "give a larger budget, fewer bits in bits_choices, or a larger group_size",
            )
        state.bits = chosen
        mean = sum(costs[name][bits] for name, bits in chosen.items()) / total
        counts = Counter(chosen.values())
        shown = ", ".join(f"{counts[bits]} of {bits} bits" for bits in sorted(counts))
        told = Diagnostic(
            Code.BITS_ALLOTTED,
            "bits_budget",
            f"{mean:.3f} of {budget:g} bits per weight, scales included: {shown}",
            "",
            {"bits": chosen, "mean": mean, "damages": damages},
        )
        return PassResult(modified=False, diagnostics=(told,))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A weight and how it may be stored, by bits."""

    node: ir.Node
    shape: tuple[int, int]
    specs: Mapping[int, QSpec]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def stored_bits(self, bits: int) -> float:
        """Of the integers with their scales and zero points."""
        spec, (inner, columns) = self.specs[bits], self.shape
        group = spec.group_size or inner
        groups = math.ceil(inner / group) * columns
        return self.size * bits + groups * (_SCALE_BITS + (0 if spec.symmetric else bits))


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
    model: ir.Model, state: State, layers: Mapping[str, _Layer]
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
            "bits_budget",
            "needs torch, which is not installed",
            "pip install torch, or give bits by rules",
        ) from missing

    def error(node: ir.Node, bits: int) -> npt.NDArray[np.float32]:
        array = constant(node.inputs[1])
        assert array is not None
        weight = np.asarray(array, np.float32)
        spec = layers[str(node.name)].specs.get(bits)
        if spec is None:
            return np.zeros_like(weight)
        clip = CLIP_RATIOS if bits <= 4 else (1.0,)
        return round_to_nearest(weight, spec, clip_ratios=clip).dequantize() - weight

    options = sorted({bits for layer in open_choices.values() for bits in layer.specs})
    found = weight_damages(
        model.graph,
        [layer.node for layer in open_choices.values()],
        _samples(state),
        options,
        error,
        seed=state.recipe.seed,
    )
    for name, layer in open_choices.items():
        damages[name] = {bits: found[name][bits] for bits in layer.specs}
    return damages


def _samples(state: State) -> Sequence[Feed]:
    if state.feeds is None or not state.feeds.reiterable:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            "bits_budget",
            "found no data that can be read again, wanted calibration data",
            "give calibration data as a list or a callable, or bits by rules",
        )
    found: list[Feed] = []
    for feed in state.feeds:
        found.append(feed)
        if len(found) == _SAMPLES:
            break
    return found

"""Move what every value of a channel has in common into the next layer's bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.extremes import ChannelSpread, channel_spreads
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.plan import Plan, Verdict
from qcompiler_passes.prepare.layer_pairs import (
    Linear,
    Pair,
    find_pairs,
    no_pairs,
    shift_bias,
    takes_bias,
)
from qcompiler_passes.prepare.trial_plan import trial_plan

__all__ = ["AbsorbBiases"]

Wide = npt.NDArray[np.float64]

_HEADROOM = 1.25  # other data may reach so much lower, or higher under a cap, than what was seen
_DEVIATIONS = 3.0  # Nagel et al. 2019, 4.1.3
_WORTH = 0.01  # of the largest value that is stored; below, nothing is won
_BENDS = frozenset({"Clip", "LeakyRelu", "Relu"})
_SHIFTS = _BENDS | {"Dropout", "GlobalAveragePool", "Identity", "MaxPool"}


@dataclasses.dataclass(frozen=True)
class AbsorbBiases(Pass):
    """Lower a channel that is always on, and add what it lacks behind the next layer.

    High-bias absorption (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization
    and Bias Correction", arXiv 1906.04721, 4.1.3): equalization makes biases large, and a channel
    whose values lie between 10 and 12 spends its levels on what never comes. Where ``y >= c >= 0``,
    ``relu(y - c) = relu(y) - c``.

    Given, with ``c`` by channel::

        %y = Conv(%x, %w1, %b1);  %a = Relu(%y);  %z = Conv(%a, %w2, %b2)

    Result, with constants ``b1 - c`` and ``b2 + W2 c``::

        %y = Conv(%x, %w1, %b1);  %a = Relu(%y);  %z = Conv(%a, %w2, %b2)

    The paper takes ``c`` from batch norms, the mean less three deviations, and clips what lies
    below. With ``absorb_biases = true`` it is four fifths of the least value on the calibration
    data: the same numbers on these and on all data that reach no lower. With ``"deviation"`` it is
    the paper's, by the means and deviations of the calibration data; whether that is worth the
    values that it clips, the model must tell: ``auto`` tries it.

    A second layer that pads is left alone: zeros at the border would have to be ``-c``. A channel
    that comes near to the cap of a Clip keeps its bias.
    """

    name: ClassVar[str] = "absorb-biases"
    phase: ClassVar[Phase] = Phase.PREPARE
    exact: ClassVar[bool] = False  # "deviation" is not

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Change biases, or add them where a Conv has none."""
        feeds, wanted = state.feeds, state.recipe.absorb_biases
        if not wanted or state.statistics is not None:
            return PassResult(modified=False)
        if feeds is None or not feeds.reiterable:
            message = "has no effect: there are no calibration data that can be read more than once"
            told = Diagnostic(Code.KEY_UNUSED, "absorb_biases", message, "give a list of feeds")
            return PassResult(modified=False, diagnostics=(told,))
        said: list[Diagnostic] = []
        pairs = [pair for pair in find_pairs(model.graph) if _suits(pair, said)]
        if wanted == "deviation" and pairs:
            plan = trial_plan(model, state)
            pairs = [pair for pair in pairs if _is_stored(pair, plan, said)]
        if not pairs and not said:
            said.append(no_pairs("absorb_biases"))
        spreads = _spreads(model, pairs, state)
        modified = False
        for pair in pairs:
            spread = spreads[pair.first.end.outputs[0].name or ""]
            c = _common(pair, spread, by_deviation=wanted == "deviation")
            if not c.any():
                said.append(_kept(pair, "no channel is always on by more than it varies"))
                continue
            shift_bias(model.graph, pair.first, -c)
            shift_bias(model.graph, pair.second, _behind(pair.second, c))
            modified = True
            said.append(_done(pair, c, spread))
        return PassResult(modified, tuple(said))


def _suits(pair: Pair, said: list[Diagnostic]) -> bool:
    if not any(node.op_type in _BENDS for node in pair.between):
        return False
    why = ""
    if any(node.op_type not in _SHIFTS for node in pair.between):
        why = "what stands between does not keep a shift"
    elif not takes_bias(pair.first) or not takes_bias(pair.second):
        why = "a matrix product without a bias has no place for it"
    elif _pads(pair.second.node):
        why = "the second layer pads with zeros, which would have to be other numbers"
    if why:
        said.append(_kept(pair, why))
    return not why


def _is_stored(pair: Pair, plan: Plan, said: list[Diagnostic]) -> bool:
    """Whether the plan quantizes both layers: clipping what stays in float only does harm."""
    layers = (pair.first.node, pair.second.node)
    if all(plan.nodes[node.name or ""].verdict is Verdict.QUANTIZED for node in layers):
        return True
    said.append(_kept(pair, "one of the two layers stays in float, which would be clipped in vain"))
    return False


def _pads(node: ir.Node) -> bool:
    if node.op_type != "Conv":
        return False
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", ()))


def _spreads(model: ir.Model, pairs: Sequence[Pair], state: State) -> dict[str, ChannelSpread]:
    assert state.feeds is not None
    axes = {pair.first.end.outputs[0].name or "": pair.first.axis for pair in pairs}
    return channel_spreads(model, axes, state.feeds)


def _common(pair: Pair, spread: ChannelSpread, *, by_deviation: bool) -> Wide:
    """What each channel is lowered by, at least 0, ``[channels]``."""
    c = spread.mean - _DEVIATIONS * spread.deviation if by_deviation else spread.lo / _HEADROOM
    if pair.cap is not None:
        c = np.where(spread.hi * _HEADROOM < pair.cap, c, 0.0)
    return np.where(c > _WORTH * max(float(spread.hi.max()), 0.0), c, 0.0)


def _behind(layer: Linear, c: Wide) -> Wide:
    """``W c``: what a constant input gives at every place, ``[outputs]``."""
    taps = layer.weight().sum(axis=3)  # [groups, outputs / groups, inputs / groups]
    return np.asarray(np.einsum("goi,gi->go", taps, c.reshape(len(taps), -1)).reshape(-1))


def _done(pair: Pair, c: Wide, spread: ChannelSpread) -> Diagnostic:
    moved = int((c > 0).sum())
    before, after = float(spread.hi.max()), float((spread.hi - c).max())
    message = (
        f"{moved} of {len(c)} channels lowered by up to {c.max():.3g}, into the bias of"
        f" {pair.second.node.name}: largest value {before:.3g} -> {after:.3g}"
    )
    values = {"channels": len(c), "moved": moved, "before": before, "after": after}
    return Diagnostic(Code.BIAS_ABSORBED, pair.first.node.name or "", message, "", values)


def _kept(pair: Pair, why: str) -> Diagnostic:
    return Diagnostic(
        Code.BIAS_KEPT,
        pair.first.node.name or "",
        f"biases stay, before {pair.second.node.name}: {why}",
    )

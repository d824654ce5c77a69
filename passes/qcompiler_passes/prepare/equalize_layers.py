"""Balance the weights of consecutive layers (cross-layer equalization)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.equalization import Link, Side, equalize
from qcompiler.calibration.extremes import channel_extremes
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import constant
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler_passes.prepare.layer_pairs import Pair, find_pairs, no_pairs, set_constant

__all__ = ["EqualizeLayers"]

Wide = npt.NDArray[np.float64]

_HEADROOM = 1.25  # a cap stays this far above what calibration saw of a channel
_MOVED = 1.001


@dataclasses.dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Divide the output channels of a layer by factors and multiply the layer that reads them.

    Given, with factors s::

        %y = Conv(%x, %w1, %b1);  %a = Relu(%y);  %z = Conv(%a, %w2, %b2)

    Result, with constants ``w1 / s``, ``b1 / s`` and ``w2 * s``::

        %y = Conv(%x, %w1, %b1);  %a = Relu(%y);  %z = Conv(%a, %w2, %b2)

    Where ``Clip(0, cap)`` stands between, factors would need a cap by channel, which no integer
    kernel has. A channel that reached its cap on the calibration data keeps factor 1. Another one
    may grow as long as a quarter above the largest value seen stays below the cap: the same
    numbers on all data seen, and beyond it a cap where the integers would saturate anyhow.

    Off by default: rounding by the second moment and bias correction win more, and with them
    factors that enlarge rounding errors lose more than balanced ranges win (ADR 0009).
    """

    name: ClassVar[str] = "equalize-layers"
    phase: ClassVar[Phase] = Phase.PREPARE

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Change constants; the structure stays."""
        if not state.recipe.equalize_layers:
            return PassResult(modified=False)
        pairs = list(find_pairs(model.graph))
        if not pairs:
            return PassResult(modified=False, diagnostics=(no_pairs("equalize_layers"),))
        said: list[Diagnostic] = []
        extremes = _extremes(model, pairs, state)
        ready = [pair for pair in pairs if self._is_known(pair, extremes, said)]
        if not ready or state.statistics is not None:
            if ready:
                said = [
                    _refused(pair, "statistics of the model as it is are given") for pair in ready
                ]
            return PassResult(modified=False, diagnostics=tuple(said))
        factors = _factors(ready, extremes)
        modified = False
        for pair, s in zip(ready, factors, strict=True):
            moved = int((np.abs(np.log(s)) > np.log(_MOVED)).sum())
            if not moved:
                said.append(_refused(pair, "no channel may move, or none needs to"))
                continue
            if not _apply(model.graph, pair, s):
                said.append(_refused(pair, "a constant would overflow its type"))
                continue
            modified = True
            said.append(_done(pair, s, moved))
        return PassResult(modified, tuple(said))

    def _is_known(
        self, pair: Pair, extremes: dict[str, tuple[Wide, Wide]], said: list[Diagnostic]
    ) -> bool:
        if pair.cap is None or np.isinf(pair.cap) or (pair.capped and pair.capped.name in extremes):
            return True
        said.append(
            _refused(
                pair,
                f"Clip caps at {pair.cap:g} and no data says which channels reach it",
                "give calibration data that can be read more than once, as a list",
            )
        )
        return False


def _extremes(model: ir.Model, pairs: Sequence[Pair], state: State) -> dict[str, tuple[Wide, Wide]]:
    axes = {
        pair.capped.name or "": pair.first.axis
        for pair in pairs
        if pair.capped is not None and pair.cap is not None and not np.isinf(pair.cap)
    }
    if not axes or state.feeds is None or not state.feeds.reiterable:
        return {}
    found = channel_extremes(model, axes, state.feeds)
    return {name: (lo.astype(float), hi.astype(float)) for name, (lo, hi) in found.items()}


def _factors(pairs: Sequence[Pair], extremes: dict[str, tuple[Wide, Wide]]) -> list[Wide]:
    sides: dict[ir.Node, Side] = {}
    for pair in pairs:
        for layer in (pair.first, pair.second):
            if layer.node not in sides:
                sides[layer.node] = Side(np.abs(layer.weight()).max(axis=3))
    links = []
    for pair in pairs:
        first, second = sides[pair.first.node], sides[pair.second.node]
        channels = len(first.by_output)
        least, most = np.zeros(channels), np.full(channels, np.inf)
        if pair.cap is not None and not np.isinf(pair.cap) and pair.capped is not None:
            hi = extremes[pair.capped.name or ""][1]
            reached = hi * _HEADROOM >= pair.cap
            least = np.where(reached, 1.0, hi * _HEADROOM / pair.cap)
            most = np.where(reached, 1.0, np.inf)
        links.append(Link(first, second, least, most))
    return equalize(links)


def _apply(graph: ir.Graph, pair: Pair, s: Wide) -> bool:
    first, second = pair.first.weight(), pair.second.weight()
    less = first / s.reshape(*first.shape[:2], 1, 1)
    more = second * s.reshape(second.shape[0], 1, second.shape[2], 1)
    bias = None
    if pair.first.bias is not None:
        node, index = pair.first.bias
        old = constant(node.inputs[index])
        assert old is not None
        with np.errstate(over="ignore"):
            bias = (old.astype(np.float64) / s).astype(old.dtype)
    weight = constant(pair.first.node.inputs[1])
    assert weight is not None
    bound = float(np.finfo(weight.dtype).max)
    if max(np.abs(less).max(), np.abs(more).max()) > bound:
        return False
    if bias is not None and not np.isfinite(bias).all():
        return False
    pair.first.put(graph, less)
    pair.second.put(graph, more)
    if pair.first.bias is not None and bias is not None:
        set_constant(graph, *pair.first.bias, bias)
    return True


def _done(pair: Pair, s: Wide, moved: int) -> Diagnostic:
    values = {
        "channels": len(s),
        "moved": moved,
        "least": float(s.min()),
        "most": float(s.max()),
        "into": pair.second.node.name,
    }
    message = (
        f"{moved} of {len(s)} channels moved into {pair.second.node.name} by factors from "
        f"{s.min():.2g} to {s.max():.2g}"
    )
    return Diagnostic(Code.EQUALIZED, pair.first.node.name or "", message, "", values)


def _refused(pair: Pair, why: str, hint: str = "") -> Diagnostic:
    return Diagnostic(
        Code.NOT_EQUALIZED,
        pair.first.node.name or "",
        f"not equalized with {pair.second.node.name}: {why}",
        hint,
    )

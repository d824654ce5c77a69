"""Scale input channels that matter up in the weights that read them (AWQ)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.awq import AwqOptions, AwqScales, diagonal_blocks, find_scales
from qcompiler.algorithms.second_moment import SecondMoment
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import Recipe
from qcompiler.stages.cut import LayerGroup, Site, groups_of
from qcompiler.stages.walk import Observer, walk
from qcompiler_passes.prepare.channel_factors import ChannelFactors, FactorPass, has_place
from qcompiler_passes.prepare.smoothing_groups import Group
from qcompiler_passes.weights.staged import staged_layers

__all__ = ["ScaleSalientChannels"]


@dataclasses.dataclass(frozen=True)
class ScaleSalientChannels(FactorPass):
    """Multiply rows of the weights that AWQ or AutoRound rounds, and divide what they read.

    A trial of the plan tells which weights those are. The float graph runs once, in stages, on all
    of the calibration data; the factors of each group of layers are searched when its stage is
    done. What ``clip-by-outputs`` will need of the data is kept, group by group of the weights.
    AutoRound learns behind its factors (``autoround.scale_channels``).

    Given, with factors s::

        %y = RMSNormalization(%x, %gain);  %z = MatMul(%y, %w)

    Result, with constants ``gain / s`` and ``s * w`` under the old names::

        %y = RMSNormalization(%x, %gain);  %z = MatMul(%y, %w)

    Where nothing before the layers can absorb the factors they stay as they are; with
    ``awq.insert`` a Mul by ``1 / s`` stands before them.
    """

    name: ClassVar[str] = "scale-salient-channels"
    algorithm: ClassVar[str] = "awq"

    def serves(self, recipe: Recipe) -> frozenset[str]:
        """AutoRound's as well, if the recipe says so."""
        learned = {"autoround"} if recipe.autoround.scale_channels else set()
        return frozenset({self.algorithm} | learned)

    def find(self, factors: ChannelFactors, feeds: Iterable[Feed]) -> None:
        """Fill ``state.moments`` besides.

        Raises:
            QcError: What the walk raises.
        """
        recipe = factors.state.recipe
        options = AwqOptions(**recipe.awq.model_dump(exclude={"rounding"}))
        clipped = set(staged_layers(factors.model.graph, factors.plan, {self.algorithm}))
        searches = {
            group.value: _Search(group, options, clips=not clipped.isdisjoint(group.layers))
            for group in factors.groups()
        }

        def observe(group: LayerGroup) -> Observer:
            return searches[group.value]

        layers = groups_of(factors.layers)
        walk(factors.model, layers, feeds, observe, mask=recipe.calibration.mask)
        found = [(_scaled(factors, search), search) for search in searches.values()]
        factors.state.moments = {name: blocks for (name, blocks), search in found if search.clips}


class _Search(Observer):
    """Sums what one activation is like, then searches its factors."""

    def __init__(self, group: Group, options: AwqOptions, *, clips: bool) -> None:
        self.group = group
        self.clips = clips  # whether ranges are going to be clipped by what is seen
        self.found: AwqScales | None = None
        self.blocks = np.zeros((0, 0, 0), np.float32)
        self._options = options
        self._moment: SecondMoment | None = None
        self._sizes = np.zeros(0)

    def update(self, x: npt.NDArray[Any]) -> None:
        if self._moment is None:
            self._moment = SecondMoment(x.shape[-1])
            self._sizes = np.zeros(x.shape[-1])
        self._sizes += np.abs(x.reshape(-1, x.shape[-1])).sum(axis=0, dtype=np.float64)
        self._moment.update(x)

    def finish(self) -> Mapping[Site, QTensor]:
        assert self._moment is not None
        hessian, rows, group = self._moment.sum(), max(1, self._moment.rows), self.group
        self._moment = None
        if has_place(group, insert=self._options.insert):
            ties = None if group.fold is None else group.fold.ties
            means = self._sizes / rows
            self.found = find_scales(
                group.weights, means, hessian, group.weight, self._options, ties
            )
        if self.clips:
            self.blocks = diagonal_blocks(hessian, group.weight)
        return {}


def _scaled(factors: ChannelFactors, search: _Search) -> tuple[str, npt.NDArray[np.float32]]:
    """Apply the factors of one group, or say why not; what it reads then, and the moments of it."""
    group, found = search.group, search.found
    blocks, read = search.blocks, group.value
    if found is None:
        factors.keep(group, group.refusal)
    elif found.ratio is None:
        message = f"no scales help: error {found.loss_without:.2e} of the outputs"
        if not found.loss_without:
            message = "without scales there is no error on these data: nothing to find"
        factors.keep(group, message, {"loss": found.loss_without})
    elif factors.apply(
        group,
        found.factors,
        f"scaled with exponent {found.ratio:g}: error {found.loss_without:.2e} -> "
        f"{found.loss:.2e} of the outputs of {len(group.layers)} layers",
        {"ratio": found.ratio, "loss": found.loss, "loss_without": found.loss_without},
    ):
        read = group.layers[0].inputs[0] or read
        if search.clips:
            blocks = _divided(blocks, found.factors)
    return read.name or "", blocks


def _divided(
    blocks: npt.NDArray[np.float32], factors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """The moments of the activation divided by its factors."""
    groups, size, _ = blocks.shape
    inverse = np.zeros(groups * size)
    inverse[: len(factors)] = 1.0 / factors
    parts = inverse.reshape(groups, size)
    return np.asarray(blocks * parts[:, :, None] * parts[:, None, :], np.float32)

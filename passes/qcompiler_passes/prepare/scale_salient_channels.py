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
from qcompiler.stages.store import ArrayStore
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

    With ``work=`` factors and what is kept of the data go there group by group: a compile that was
    killed searches those that are left, and runs nothing when all are there.
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
        store = ArrayStore(factors.state.work) if factors.state.work else None
        keys = factors.keys(recipe.awq)
        searches = {
            group.value: _Search(
                group,
                options,
                store,
                keys[group.layers[0].name or "", 1],
                clips=not clipped.isdisjoint(group.layers),
            )
            for group in factors.groups()
        }

        def observe(group: LayerGroup) -> Observer | Mapping[Site, QTensor]:
            search = searches[group.value]
            return {} if search.is_stored() else search

        layers = groups_of(factors.layers)
        walk(factors.model, layers, feeds, observe, mask=recipe.calibration.mask)
        found = [(_scaled(factors, search), search) for search in searches.values()]
        factors.state.moments = {name: blocks for (name, blocks), search in found if search.clips}


class _Search(Observer):
    """Sums what one activation is like, then searches its factors."""

    def __init__(
        self,
        group: Group,
        options: AwqOptions,
        store: ArrayStore | None,
        key: str,
        *,
        clips: bool,
    ) -> None:
        self.group = group
        self.clips = clips  # whether ranges are going to be clipped by what is seen
        self.found: AwqScales | None = None
        self.blocks = np.zeros((0, 0, 0), np.float32)
        self._options = options
        self._searches = has_place(group, insert=options.insert)
        self._store = store
        self._key = f"scale-salient-channels {key} {clips} {self._searches}"
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
        if self._searches:
            ties = None if group.fold is None else group.fold.ties
            means = self._sizes / rows
            self.found = find_scales(
                group.weights, means, hessian, group.weight, self._options, ties
            )
        if self.clips:
            self.blocks = diagonal_blocks(hessian, group.weight)
        if self._store is not None:
            self._store.put(group.value.name or "", self._key, self._arrays())
        return {}

    def is_stored(self) -> bool:
        """Take what the work folder holds, if it does."""
        name = self.group.value.name or ""
        if self._store is None or not self._store.has(name, self._key):
            return False
        arrays = self._store.get(name, self._key)
        self.blocks = arrays["blocks"]
        if self._searches:
            ratio, loss, without = arrays["found"].tolist()
            ratio = None if np.isnan(ratio) else ratio
            self.found = AwqScales(arrays["factors"], ratio, loss, without)
        return True

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {"blocks": self.blocks}
        if self.found is not None:
            ratio = np.nan if self.found.ratio is None else self.found.ratio
            arrays["factors"] = self.found.factors
            arrays["found"] = np.asarray([ratio, self.found.loss, self.found.loss_without])
        return arrays


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

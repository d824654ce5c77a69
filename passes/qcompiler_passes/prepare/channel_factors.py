"""What passes have in common that scale input channels of the weights of one algorithm."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pydantic

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.provenance import module_of
from qcompiler.pipeline.contract import Feed, Pass, PassResult, Phase, State
from qcompiler.plan import Plan
from qcompiler.recipe import Recipe
from qcompiler.stages.cut import Site, groups_of
from qcompiler_passes.prepare.smoothing_groups import Group, apply_factors, group_of
from qcompiler_passes.prepare.trial_plan import trial_plan
from qcompiler_passes.weights.staged import (
    CountedFeeds,
    digested_feeds,
    site_keys,
    staged_layers,
)

__all__ = ["ChannelFactors", "FactorPass", "has_place"]


class FactorPass(Pass):
    """Finds factors for input channels where a trial of the plan gives layers to ``algorithm``.

    Attributes:
        algorithm: Whose part of the work this is.
    """

    phase: ClassVar[Phase] = Phase.PREPARE
    algorithm: ClassVar[str]

    def serves(self, recipe: Recipe) -> frozenset[str]:
        """The algorithms whose layers get factors."""
        return frozenset({self.algorithm})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph.

        Raises:
            QcError: QC410, there is no data; what :meth:`find` raises.
        """
        recipe = state.recipe
        named = {recipe.weights.algorithm, *(rule.algorithm for rule in recipe.rules)}
        served = self.serves(recipe)
        if not served & named:
            return PassResult(modified=False)
        plan = state.plan or trial_plan(model, state)
        layers = staged_layers(model.graph, plan, served)
        if not layers:
            return PassResult(modified=False)
        given, data = digested_feeds(state)
        feeds = CountedFeeds(given)
        factors = ChannelFactors(model, state, plan, layers, data)
        self.find(factors, feeds)
        few = feeds.too_few(self.algorithm) if self.algorithm in named else ()
        return PassResult(factors.modified, (*factors.said, *few))

    @abc.abstractmethod
    def find(self, factors: ChannelFactors, feeds: Iterable[Feed]) -> None:
        """Search the factors on the data, and apply them."""


class ChannelFactors:
    """One run: the layers, the edits, what is said of them.

    Attributes:
        model: The model; edited by :meth:`apply`.
        state: The compile's.
        plan: The trial plan.
        layers: MatMul nodes in graph order.
        data: Hash of the calibration data; "" where nothing outlives a compile.
        modified: Whether there was an edit.
        said: Diagnostics.
    """

    def __init__(
        self,
        model: ir.Model,
        state: State,
        plan: Plan,
        layers: Sequence[ir.Node],
        data: str = "",
    ) -> None:
        """Nothing done yet."""
        self.model = model
        self.state = state
        self.plan = plan
        self.layers = tuple(layers)
        self.data = data
        self.modified = False
        self.said: list[Diagnostic] = []

    def groups(self, nodes: Iterable[ir.Node] | None = None) -> list[Group]:
        """Those of some layers, or of all, that read one value share factors."""
        shapes = self.state.shapes or {}
        chosen = self.layers if nodes is None else list(nodes)
        return [
            group_of(found.value, list(found.nodes), self.plan, shapes)
            for found in groups_of(chosen)
        ]

    def keys(self, options: pydantic.BaseModel) -> Mapping[Site, str]:
        """A hash for each layer of all that determines its factors, before the first edit."""
        groups = groups_of(self.layers)
        return site_keys(self.model, groups, self.plan, self.state, self.data, options)

    def apply(
        self,
        group: Group,
        factors: npt.NDArray[np.float64],
        message: str,
        values: Mapping[str, object],
    ) -> bool:
        """Multiply the weights and divide what they read, and tell; False if nothing could."""
        if not apply_factors(self.model.graph, self.state, group, factors):
            self.keep(group, "a constant would overflow its type")
            return False
        self.modified = True
        self._tell(Code.SALIENT_SCALED, group, message, values)
        return True

    def keep(self, group: Group, message: str, values: Mapping[str, object] | None = None) -> None:
        """Tell why a group stays as it is."""
        self._tell(Code.SALIENT_KEPT, group, message, values or {})

    def _tell(self, code: Code, group: Group, message: str, values: Mapping[str, Any]) -> None:
        where = ", ".join(module_of(node) or node.name or "" for node in group.layers)
        self.said.append(Diagnostic(code, where, message, "", dict(values)))


def has_place(group: Group, *, insert: bool) -> bool:
    """Whether something before the layers takes the factors, or a Mul may be inserted."""
    return group.fold is not None or (insert and group.insertable)

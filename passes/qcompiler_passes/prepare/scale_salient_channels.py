"""Scale input channels that matter up in the weights that read them (AWQ)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.awq import AwqOptions, AwqScales, diagonal_blocks, find_scales
from qcompiler.algorithms.second_moment import SecondMoment
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.provenance import module_of
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.stages.cut import LayerGroup, Site, groups_of
from qcompiler.stages.walk import Observer, walk
from qcompiler_passes.prepare.smoothing_groups import Group, apply_factors, group_of
from qcompiler_passes.prepare.trial_plan import trial_plan
from qcompiler_passes.weights.staged import digested_feeds, staged_layers

__all__ = ["ScaleSalientChannels"]


@dataclasses.dataclass(frozen=True)
class ScaleSalientChannels(Pass):
    """Multiply rows of the weights that AWQ rounds, and divide what they read.

    A trial of the plan tells which weights those are. The float graph runs once, in stages, on all
    of the calibration data; the factors of each group of layers are searched when its stage is
    done. What ``clip-by-outputs`` will need of the data is kept, group by group of the weights.

    Given, with factors s::

        %y = RMSNormalization(%x, %gain);  %z = MatMul(%y, %w)

    Result, with constants ``gain / s`` and ``s * w`` under the old names::

        %y = RMSNormalization(%x, %gain);  %z = MatMul(%y, %w)

    Where nothing before the layers can absorb the factors they stay as they are; with
    ``awq.insert`` a Mul by ``1 / s`` stands before them.
    """

    name: ClassVar[str] = "scale-salient-channels"
    phase: ClassVar[Phase] = Phase.PREPARE

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph; fill ``state.moments``.

        Raises:
            QcError: QC410, there is no data; what the walk raises.
        """
        recipe = state.recipe
        if "awq" not in {recipe.weights.algorithm, *(rule.algorithm for rule in recipe.rules)}:
            return PassResult(modified=False)
        options = AwqOptions(**recipe.awq.model_dump(exclude={"rounding"}))
        plan = state.plan or trial_plan(model, state)
        layers = groups_of(staged_layers(model.graph, plan, {"awq"}))
        if not layers:
            return PassResult(modified=False)
        feeds, _ = digested_feeds(state)
        shapes = state.shapes or {}
        searches = {
            found.value: _Search(group_of(found.value, list(found.nodes), plan, shapes), options)
            for found in layers
        }

        def observe(group: LayerGroup) -> Observer:
            return searches[group.value]

        walk(model, layers, feeds, observe, mask=recipe.calibration.mask)
        run = _Run(model, state, options)
        for search in searches.values():
            run.scale(search)
        state.moments = run.moments
        return PassResult(run.modified, run.said)


class _Search(Observer):
    """Sums what one activation is like, then searches its factors."""

    def __init__(self, group: Group, options: AwqOptions) -> None:
        self.group = group
        self.found: AwqScales | None = None
        self.blocks = np.zeros((0, 0, 0), np.float32)
        self._options = options
        self._moment: SecondMoment | None = None
        self._sizes = np.zeros(0)

    @property
    def can_scale(self) -> bool:
        """Whether there is a place for factors."""
        insert = self._options.insert and self.group.insertable
        return self.group.fold is not None or insert

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
        if self.can_scale:
            ties = None if group.fold is None else group.fold.ties
            means = self._sizes / rows
            self.found = find_scales(
                group.weights, means, hessian, group.weight, self._options, ties
            )
        self.blocks = diagonal_blocks(hessian, group.weight)
        return {}


class _Run:
    """Edits of one run, and what is said of them."""

    def __init__(self, model: ir.Model, state: State, options: AwqOptions) -> None:
        self.modified = False
        self.said: list[Diagnostic] = []
        self.moments: dict[str, npt.NDArray[np.float32]] = {}
        self._graph = model.graph
        self._state = state
        self._options = options

    def scale(self, search: _Search) -> None:
        """Apply the factors of one group, or say why not."""
        group, found = search.group, search.found
        blocks, read = search.blocks, group.value
        if found is None:
            self._tell(Code.SALIENT_KEPT, group, group.refusal, {})
        elif found.ratio is None:
            message = f"no scales help: error {found.loss_without:.2e} of the outputs"
            self._tell(Code.SALIENT_KEPT, group, message, {"loss": found.loss_without})
        elif not apply_factors(self._graph, self._state, group, found.factors):
            self._tell(Code.SALIENT_KEPT, group, "a constant would overflow its type", {})
        else:
            self.modified = True
            read = group.layers[0].inputs[0] or read
            blocks = _divided(blocks, found.factors)
            message = (
                f"scaled with exponent {found.ratio:g}: error {found.loss_without:.2e} -> "
                f"{found.loss:.2e} of the outputs of {len(group.layers)} layers"
            )
            values = {
                "ratio": found.ratio,
                "loss": found.loss,
                "loss_without": found.loss_without,
            }
            self._tell(Code.SALIENT_SCALED, group, message, values)
        self.moments[read.name or ""] = blocks

    def _tell(self, code: Code, group: Group, message: str, values: dict[str, Any]) -> None:
        where = ", ".join(module_of(node) or node.name or "" for node in group.layers)
        self.said.append(Diagnostic(code, where, message, "", values))


def _divided(
    blocks: npt.NDArray[np.float32], factors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """The moments of the activation divided by its factors."""
    groups, size, _ = blocks.shape
    inverse = np.zeros(groups * size)
    inverse[: len(factors)] = 1.0 / factors
    parts = inverse.reshape(groups, size)
    return np.asarray(blocks * parts[:, :, None] * parts[:, None, :], np.float32)

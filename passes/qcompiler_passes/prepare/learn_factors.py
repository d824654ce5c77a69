"""Learn by what factors input channels are scaled before their weights are rounded (TEQ)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.provenance import module_of
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.plan import Plan
from qcompiler.stages.cut import Site, groups_of
from qcompiler_passes.prepare.smoothing_groups import Group, apply_factors, group_of
from qcompiler_passes.prepare.trial_plan import trial_plan
from qcompiler_passes.weights.staged import digested_feeds, model_blocks, staged_layers, weight_spec

if TYPE_CHECKING:
    from qcompiler.stages.blocks import BlockVisit

__all__ = ["LearnFactors"]


@dataclasses.dataclass(frozen=True)
class LearnFactors(Pass):
    """Multiply rows of the weights whose algorithm is TEQ, and divide what they read.

    A trial of the plan tells which weights those are. The float model's repeated blocks (all of it
    where nothing repeats) are visited one by one, and each learns the factors under which its
    rounded weights do least damage to its outputs (:mod:`qcompiler.algorithms.teq`).

    Given, with factors s::

        %y = RMSNormalization(%x, %gain);  %z = MatMul(%y, %w)

    Result, with constants ``gain / s`` and ``s * w`` under the old names::

        %y = RMSNormalization(%x, %gain);  %z = MatMul(%y, %w)

    Where nothing before the layers can absorb the factors they stay as they are; with
    ``teq.insert`` a Mul by ``1 / s`` stands before them.
    """

    name: ClassVar[str] = "learn-factors"
    phase: ClassVar[Phase] = Phase.PREPARE

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph.

        Raises:
            QcError: QC302 an operator has no differentiable form; QC410 there is no data; QC411
                torch is not installed.
        """
        recipe = state.recipe
        if "teq" not in {recipe.weights.algorithm, *(rule.algorithm for rule in recipe.rules)}:
            return PassResult(modified=False)
        plan = state.plan or trial_plan(model, state)
        layers = staged_layers(model.graph, plan, {"teq"})
        if not layers:
            return PassResult(modified=False)
        try:
            from qcompiler.stages.blocks import walk_blocks
        except ImportError as error:
            raise QcError(
                Code.USAGE,
                "weights.algorithm",
                "'teq' needs torch, which is not installed",
                "pip install torch, or choose awq, hqq, k-quant or rtn",
            ) from error
        learner = _Learner(state, plan, layers)
        blocks = model_blocks(model.graph)
        feeds, _ = digested_feeds(state)
        walk_blocks(model, blocks, feeds, learner.visit, mask=recipe.calibration.mask)
        modified = False
        for group, factors in learner.found:
            if apply_factors(model.graph, state, group, factors):
                modified = True
            else:
                learner.tell(Code.SALIENT_KEPT, group, "a constant would overflow its type", {})
        return PassResult(modified, learner.said)


class _Learner:
    """What is done at each block."""

    def __init__(self, state: State, plan: Plan, layers: list[ir.Node]) -> None:
        self.state = state
        self.plan = plan
        self.layers = set(layers)
        self.found: list[tuple[Group, npt.NDArray[np.float64]]] = []
        self.said: list[Diagnostic] = []

    def visit(self, block: BlockVisit) -> Mapping[Site, QTensor]:
        """Learn the factors of one block; it goes on in float."""
        from qcompiler.algorithms.teq import TeqGroup, TeqOptions, teq
        from qcompiler.lift import lift

        mine = [node for node in block.nodes if node in self.layers]
        groups = [group for group in self._groups(mine) if self._has_place(group)]
        if not groups:
            return {}
        options = self.state.recipe.teq
        lifted = lift(block.nodes, inputs=block.inputs, outputs=block.outputs)
        specs = {_weight(node): weight_spec(node, self.plan) for node in mine}
        tell = self.state.progress

        def progress(step: int, loss: float) -> None:
            if tell is not None:
                tell(f"learn-factors {block.name}, step {step + 1}, loss {loss:.3g}")

        result = teq(
            lifted,
            [
                TeqGroup(
                    tuple(dict.fromkeys(map(_weight, group.layers))),
                    None if group.fold is None else group.fold.ties,
                )
                for group in groups
            ],
            specs,
            block.exact,
            block.targets,
            keep=block.keep,
            options=TeqOptions(
                **options.model_dump(exclude={"insert"}), seed=self.state.recipe.seed
            ),
            progress=progress,
        )
        values = {"before": result.loss_before, "after": result.loss_after}
        message = f"error of {block.name} {result.loss_before:.2e} -> {result.loss_after:.2e}"
        for group, factors in zip(groups, result.factors, strict=True):
            if result.loss_after < result.loss_before:
                self.found.append((group, factors))
                self.tell(Code.SALIENT_SCALED, group, f"factors were learned: {message}", values)
            else:
                self.tell(Code.SALIENT_KEPT, group, f"no factors help: {message}", values)
        return {}

    def tell(self, code: Code, group: Group, message: str, values: dict[str, Any]) -> None:
        """Add a diagnostic."""
        where = ", ".join(module_of(node) or node.name or "" for node in group.layers)
        self.said.append(Diagnostic(code, where, message, "", values))

    def _groups(self, nodes: list[ir.Node]) -> list[Group]:
        shapes = self.state.shapes or {}
        return [
            group_of(found.value, list(found.nodes), self.plan, shapes)
            for found in groups_of(nodes)
        ]

    def _has_place(self, group: Group) -> bool:
        if group.fold is not None or (self.state.recipe.teq.insert and group.insertable):
            return True
        self.tell(Code.SALIENT_KEPT, group, group.refusal, {})
        return False


def _weight(node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    assert value is not None
    return value

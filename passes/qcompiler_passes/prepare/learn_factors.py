"""Learn by what factors input channels are scaled before their weights are rounded (TEQ)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.stages.cut import Site
from qcompiler.stages.store import ArrayStore
from qcompiler_passes.prepare.channel_factors import ChannelFactors, FactorPass, has_place
from qcompiler_passes.prepare.smoothing_groups import Group
from qcompiler_passes.weights.staged import model_blocks, weight_spec

if TYPE_CHECKING:
    from qcompiler.algorithms.teq import TeqResult
    from qcompiler.stages.blocks import BlockVisit

__all__ = ["LearnFactors"]


@dataclasses.dataclass(frozen=True)
class LearnFactors(FactorPass):
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

    With ``work=`` the factors of a block are kept as soon as they are learned: a compile that was
    killed learns those of the blocks that are left.
    """

    name: ClassVar[str] = "learn-factors"
    algorithm: ClassVar[str] = "teq"

    def find(self, factors: ChannelFactors, feeds: Iterable[Feed]) -> None:
        """Visit the blocks, then edit.

        Raises:
            QcError: QC302 an operator has no differentiable form; QC411 torch is not installed.
        """
        try:
            from qcompiler.stages.blocks import walk_blocks
        except ImportError as error:
            raise QcError(
                Code.USAGE,
                "weights.algorithm",
                "'teq' needs torch, which is not installed",
                "pip install torch, or choose awq, hqq, k-quant or rtn",
            ) from error
        learner = _Learner(factors)
        blocks = model_blocks(factors.model.graph)
        mask = factors.state.recipe.calibration.mask
        walk_blocks(factors.model, blocks, feeds, learner.visit, mask=mask)
        for found in learner.found:  # the walk is over: the graph may change
            factors.apply(found.group, found.factors, found.message, found.values)


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Factors of a group, and what is to be said when they are applied."""

    group: Group
    factors: npt.NDArray[np.float64]
    message: str
    values: Mapping[str, float]


class _Learner:
    """What is done at each block."""

    def __init__(self, factors: ChannelFactors) -> None:
        self.factors = factors
        self.layers = set(factors.layers)
        self.keys = factors.keys(factors.state.recipe.teq)
        self.store = ArrayStore(factors.state.work) if factors.state.work else None
        self.found: list[_Found] = []

    def visit(self, block: BlockVisit) -> Mapping[Site, QTensor]:
        """Learn the factors of one block; it goes on in float."""
        insert = self.factors.state.recipe.teq.insert
        mine = [node for node in block.nodes if node in self.layers]
        groups = []
        for group in self.factors.groups(mine):
            if has_place(group, insert=insert):
                groups.append(group)
            else:
                self.factors.keep(group, group.refusal)
        if not groups:
            return {}

        result = self._stored(block, mine, groups)
        values = {"before": result.loss_before, "after": result.loss_after}
        message = f"error of {block.name} {result.loss_before:.2e} -> {result.loss_after:.2e}"
        if not result.loss_before:
            message = "without factors there is no error on these data"
        for group, learned in zip(groups, result.factors, strict=True):
            if result.loss_after < result.loss_before:
                told = f"factors were learned: {message}"
                self.found.append(_Found(group, learned, told, values))
            else:
                self.factors.keep(group, f"no factors help: {message}", values)
        return {}

    def _stored(self, block: BlockVisit, mine: list[ir.Node], groups: list[Group]) -> TeqResult:
        """What the work folder holds of a block; learned and put there where it holds nothing."""
        from qcompiler.algorithms.teq import TeqResult

        if self.store is None:
            return self._learn(block, mine, groups)
        with_place = [node.name for group in groups for node in group.layers]
        # the hash of the last layer is one of all before it too
        key = f"learn-factors {self.keys[mine[-1].name or '', 1]} {with_place}"
        if self.store.has(block.name, key):
            arrays = self.store.get(block.name, key)
            before, after = arrays["losses"].tolist()
            return TeqResult([arrays[f"factors.{i}"] for i in range(len(groups))], before, after)
        result = self._learn(block, mine, groups)
        arrays = {f"factors.{i}": learned for i, learned in enumerate(result.factors)}
        arrays["losses"] = np.asarray([result.loss_before, result.loss_after])
        self.store.put(block.name, key, arrays)
        return result

    def _learn(self, block: BlockVisit, mine: list[ir.Node], groups: list[Group]) -> TeqResult:
        from qcompiler.algorithms.teq import TeqGroup, TeqOptions, teq
        from qcompiler.lift import lift

        state = self.factors.state
        options = state.recipe.teq

        def progress(step: int, share: float) -> None:
            if state.progress is not None:
                state.progress(
                    f"learn-factors {block.name}, step {step + 1}, error {share:.2f} of before"
                )

        lifted = lift(block.nodes, inputs=block.inputs, outputs=block.outputs)
        found = teq(
            lifted,
            [
                TeqGroup(
                    tuple(dict.fromkeys(map(_weight, group.layers))),
                    None if group.fold is None else group.fold.ties,
                )
                for group in groups
            ],
            {_weight(node): weight_spec(node, self.factors.plan) for node in mine},
            block.exact,
            block.targets,
            keep=block.keep,
            options=TeqOptions(**options.model_dump(exclude={"insert"}), seed=state.recipe.seed),
            progress=progress,
        )
        lifted.release()
        return found


def _weight(node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    assert value is not None
    return value

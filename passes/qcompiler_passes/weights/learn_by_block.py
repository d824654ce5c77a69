"""Learn the rounding of whole blocks (AutoRound)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.algorithms.data_free import RtnOptions, rtn
from qcompiler.analysis.blocks import Block
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import constant
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Verdict
from qcompiler.recipe import AutoRoundOptions
from qcompiler.stages.cut import LayerGroup, Site
from qcompiler.stages.store import StoredWeights, WeightStore
from qcompiler_passes.weights.staged import (
    CountedFeeds,
    digested_feeds,
    model_blocks,
    site_keys,
    staged_layers,
    weight_spec,
)

if TYPE_CHECKING:
    from qcompiler.stages.blocks import BlockVisit

__all__ = ["LearnByBlock"]


@dataclasses.dataclass(frozen=True)
class LearnByBlock(Pass):
    """Round the layers that the plan gives to AutoRound.

    The model's repeated blocks (all of it where nothing repeats) are visited in order, with what
    the rounded blocks before them give and with what they give in float. All layers of a block
    learn together, so that errors make up for one another (:mod:`qcompiler.algorithms.autoround`).
    A layer outside of the blocks, or in a block with an operator that has no differentiable form
    (LSTM, If, Loop), is rounded to nearest, and told. Rounded blocks go to the store, where a
    compile that was killed finds them.
    """

    name: ClassVar[str] = "learn-by-block"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Add to ``state.weights``; the model is untouched.

        Raises:
            QcError: QC410 there is no data; QC411 torch is not installed, the data can be read
                only once, or a weight is stored as what cannot be learned.
        """
        assert state.plan is not None
        assert state.weights is not None
        layers = staged_layers(model.graph, state.plan, {"autoround"})
        if not layers:
            return PassResult(modified=False)
        try:
            from qcompiler.stages.blocks import walk_blocks
        except ImportError as error:
            raise QcError(
                Code.USAGE,
                "weights.algorithm",
                "'autoround' needs torch, which is not installed",
                "pip install torch, or choose gptq, hqq, k-quant or rtn",
            ) from error
        _check_formats(layers, state)
        options = state.recipe.autoround
        blocks = _joined(_with_layers(model_blocks(model.graph), layers), options.nblocks)
        groups = _groups(blocks, layers)
        given, data = digested_feeds(state)
        feeds = CountedFeeds(given)
        data += _others(blocks, layers, state)
        keys = site_keys(model, groups, state.plan, state, data, options)
        learner = _Learner(state, blocks, keys)
        if blocks:
            walk_blocks(model, blocks, feeds, learner.visit, mask=state.recipe.calibration.mask)
        inside = {node for group in groups for node in group.nodes}
        outside = learner.nearest(
            [node for node in layers if node not in inside],
            "stands outside of the repeated blocks",
        )
        aside = WeightStore()
        for site, tensor in outside.items():
            aside.put(site, "", tensor)
        held = StoredWeights(state.weights, aside, dict.fromkeys(outside, ""))
        state.weights = StoredWeights(held, learner.store, keys)
        said = (*learner.said, *feeds.too_few("autoround"))
        return PassResult(modified=False, diagnostics=said)


def _check_formats(layers: list[ir.Node], state: State) -> None:
    assert state.plan is not None
    for node in layers:
        spec = weight_spec(node, state.plan)
        if spec.codebook or spec.scales is not None or spec.float_zero:
            raise QcError(
                Code.USAGE,
                node.name or "",
                f"'autoround' learns integers with float scales, not {spec}",
                "give the layer another algorithm, or format = 'int' of 2 bits or more without "
                "double_quant",
            )


def _with_layers(blocks: tuple[Block, ...], layers: list[ir.Node]) -> list[Block]:
    wanted = set(layers)
    return [block for block in blocks if wanted.intersection(block.nodes)]


def _joined(blocks: list[Block], count: int) -> list[Block]:
    """Several consecutive blocks as one."""
    return [
        Block(part[0].name, tuple(node for block in part for node in block.nodes))
        for start in range(0, len(blocks), count)
        if (part := blocks[start : start + count])
    ]


def _groups(blocks: list[Block], layers: list[ir.Node]) -> list[LayerGroup]:
    """The layers of each block, as if they read one activation: they are rounded together."""
    wanted = set(layers)
    found = []
    for block in blocks:
        mine = tuple(node for node in block.nodes if node in wanted)
        value = mine[0].inputs[0]
        assert value is not None
        found.append(LayerGroup(value, mine))
    return found


def _others(blocks: list[Block], layers: list[ir.Node], state: State) -> str:
    """What rounds the other layers of the blocks, beside which these learn; "" where none is."""
    plan = state.plan
    assert plan is not None
    names = {node.name or "" for block in blocks for node in block.nodes}
    names -= {node.name or "" for node in layers}
    planned = sorted(name for name in names if name in plan.nodes)
    quantized = [n for n in planned if plan.nodes[n].verdict is Verdict.QUANTIZED]
    if not quantized:
        return ""
    said = [f"{n} {plan.nodes[n].algorithm} {plan.nodes[n].inputs}" for n in quantized]
    tables = {"weights", "rtn", "hqq", "gptq", "teq", "awq"}
    return f"{said} {state.recipe.model_dump_json(include=tables)}"


class _Learner:
    """What is done at each block."""

    def __init__(self, state: State, blocks: list[Block], keys: Mapping[Site, str]) -> None:
        self.state = state
        self.options: AutoRoundOptions = state.recipe.autoround
        self.keys = keys
        self.store = WeightStore(state.work)
        self.said: list[Diagnostic] = []
        self.count = len(blocks)
        self.done = 0
        self.began = time.perf_counter()

    def visit(self, block: BlockVisit) -> Mapping[Site, QTensor]:
        """The block's rounded weights, those of other algorithms included."""
        weights = self.state.weights
        assert weights is not None
        sites = [(node.name or "", 1) for node in block.nodes]
        mine = [site for site in sites if site in self.keys]
        if not (self.state.work and all(self.store.has(site, self.keys[site]) for site in mine)):
            self._learn(block, mine)
        self.done += 1
        others = {site: weights[site] for site in sites if site in weights}
        return StoredWeights(others, self.store, {site: self.keys[site] for site in mine})

    def _learn(self, block: BlockVisit, mine: list[Site]) -> None:
        from qcompiler.algorithms.autoround import AutoRoundOptions as Options
        from qcompiler.algorithms.autoround import autoround
        from qcompiler.lift import lift

        plan, weights = self.state.plan, self.state.weights
        assert plan is not None
        assert weights is not None
        try:
            lifted = lift(block.nodes, inputs=block.inputs, outputs=block.outputs)
        except QcError as error:
            if error.code is not Code.NOT_LIFTABLE:
                raise
            nodes = [node for node in block.nodes if (node.name or "", 1) in mine]
            said = f"{error.diagnostic.where} of its block cannot be learned through"
            for site, tensor in self.nearest(nodes, f"{said} ({error.diagnostic.message})").items():
                self.store.put(site, self.keys[site], tensor)
            return
        by_value: dict[ir.Value, list[ir.Node]] = {}
        specs = {}
        for node in block.nodes:
            site, value = (node.name or "", 1), node.inputs[1] if len(node.inputs) > 1 else None
            if value is None:
                continue
            if site in mine:
                by_value.setdefault(value, []).append(node)
                specs[value] = weight_spec(node, plan)
            elif site in weights:
                lifted.quantize_weight(value, weights[site])
        chosen = self.options.model_dump(
            exclude={"scale_channels", "nblocks", "enable_quanted_input"}
        )
        result = autoround(
            lifted,
            specs,
            block.samples if self.options.enable_quanted_input else block.exact,
            block.targets,
            keep=block.keep,
            options=Options(**chosen, seed=self.state.recipe.seed),
            progress=self._progress(block.name),
        )
        for value, nodes in by_value.items():
            for node in nodes:
                site = (node.name or "", 1)
                self.store.put(site, self.keys[site], result.tensors[value])
        lifted.release()
        if not result.loss_before:
            none = "rounded to nearest it gives what it should on these data: nothing to learn"
            self.say(Code.ROUNDING_KEPT, block.name, none)
            return
        share = result.loss_after / result.loss_before
        self.say(
            Code.ROUNDING_LEARNED if share < 1 else Code.ROUNDING_KEPT,
            block.name,
            f"error of the block {share:.2f} of rounding to nearest, {result.steps} steps",
            {"before": result.loss_before, "after": result.loss_after, "steps": result.steps},
        )

    def nearest(self, nodes: list[ir.Node], why: str) -> dict[Site, QTensor]:
        """Layers that cannot learn, each by itself."""
        assert self.state.plan is not None
        options = RtnOptions(**self.state.recipe.rtn.model_dump())
        found = {}
        for node in nodes:
            name, spec = node.name or "", weight_spec(node, self.state.plan)
            array = np.asarray(constant(node.inputs[1]), np.float32)
            found[name, 1] = rtn(array, spec, options, where=name)
            self.say(Code.ROUNDING_KEPT, name, f"rounded to nearest: {why}")
        return found

    def _progress(self, name: str) -> Callable[[int, float], None] | None:
        tell = self.state.progress
        if tell is None:
            return None
        steps = max(self.options.iters, 1)

        def progress(step: int, error: float) -> None:
            share = self.done + (step + 1) / steps
            left = (time.perf_counter() - self.began) * (self.count / share - 1)
            tell(
                f"learn-by-block {self.done + 1}/{self.count} {name}, step {step + 1}, error"
                f" {error:.2f} of rounding to nearest, about {left:.0f} s left"
            )

        return progress

    def say(
        self, code: Code, where: str, message: str, values: Mapping[str, object] | None = None
    ) -> None:
        """Add a diagnostic."""
        self.said.append(Diagnostic(code, where, message, "", dict(values or {})))

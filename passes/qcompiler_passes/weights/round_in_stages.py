"""Round weights by what reaches them, layer behind layer, in stages of the graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.algorithms.gptq import GptqOptions, GptqResult, gptq
from qcompiler.algorithms.second_moment import SecondMoment
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import constant
from qcompiler.ir.provenance import module_of
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Plan
from qcompiler.schemes import QSpec
from qcompiler.stages.cut import LayerGroup, Site, groups_of
from qcompiler.stages.store import StoredWeights, WeightStore
from qcompiler.stages.walk import Observer, walk
from qcompiler_passes.weights.staged import digested_feeds, site_keys, staged_layers, weight_spec

__all__ = ["RoundInStages"]


@dataclasses.dataclass(frozen=True)
class RoundInStages(Pass):
    """Round the layers that the plan gives to GPTQ, and with ``awq.rounding`` those of AWQ.

    The graph runs in stages on all of the calibration data, each product once: a layer is rounded
    for the inputs that the rounded layers before it give. Weights go to a store as soon as they
    are rounded. With ``work=`` that is a folder of the user's: a compile that was killed finds its
    weights there, runs the stages before with them, and comes to the same numbers.
    """

    name: ClassVar[str] = "round-in-stages"
    phase: ClassVar[Phase] = Phase.WEIGHTS
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN, Fact.WEIGHTS})
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Add to ``state.weights``; the model is untouched.

        Raises:
            QcError: QC410, there is no data; QC411, data that can be read once has been read; what
                the walk and the algorithm raise.
        """
        assert state.plan is not None
        assert state.weights is not None
        both = state.recipe.awq.rounding == "gptq"
        layers = staged_layers(model.graph, state.plan, {"gptq", "awq"} if both else {"gptq"})
        if not layers:
            return PassResult(modified=False)
        groups = groups_of(layers)
        store = WeightStore(state.work)
        feeds, data = digested_feeds(state)
        keys = site_keys(model, groups, state.plan, state, data, state.recipe.gptq)
        said: list[Diagnostic] = []
        short: list[_Short] = []
        found = 0

        def observe(group: LayerGroup) -> Observer | Mapping[Site, QTensor]:
            nonlocal found
            if state.work and all(store.has(site, keys[site]) for site in group.sites):
                found += len(group.sites)
                return StoredWeights({}, store, {site: keys[site] for site in group.sites})
            return _Gptq(group, state, store, keys, said, short)

        count = walk(
            model,
            groups,
            feeds,
            observe,
            mask=state.recipe.calibration.mask,
            progress=None if state.progress is None else lambda line: _tell(state, line),
        )
        state.weights = StoredWeights(state.weights, store, keys)
        said.insert(0, _summary(layers, count, found))
        said += _too_few(short)
        if state.recipe.gptq.fp8_scales:
            said.append(_fp8_scales(len(layers)))
        return PassResult(modified=False, diagnostics=said)


def _summary(layers: list[ir.Node], feeds: int, found: int) -> Diagnostic:
    """What the user may want to know of the whole."""
    done = f"{len(layers)} layers were rounded behind rounded ones, on {feeds} feeds"
    kept = f"; {found} of them were found in the work folder" if found else ""
    values = {"layers": len(layers), "feeds": feeds, "found": found}
    return Diagnostic(Code.ROUNDED_IN_STAGES, "round-in-stages", done + kept, "", values)


@dataclasses.dataclass(frozen=True, slots=True)
class _Short:
    """Layers whose Hessian has not full rank, for want of rows."""

    where: str
    rows: int
    channels: int


def _too_few(short: list[_Short]) -> Iterator[Diagnostic]:
    """What the user may want to know of layers that saw too little."""
    if not short:
        return
    worst = max(short, key=lambda item: item.channels / item.rows)
    times = math.ceil(worst.channels / worst.rows)
    yield Diagnostic(
        Code.FEW_SAMPLES,
        worst.where,
        f"GPTQ saw {worst.rows} rows, wanted at least as many as input channels, {worst.channels};"
        f" so few in {len(short)} activations, this one the worst",
        f"give at least {times} times as much data",
        {"rows": worst.rows, "channels": worst.channels, "activations": len(short)},
    )


def _fp8_scales(layers: int) -> Diagnostic:
    return Diagnostic(
        Code.FP8_SCALES,
        "gptq.fp8_scales",
        f"the scales of {layers} layers are a factor for each output channel times powers of two,"
        " so that the weights are E4M3 numbers times the factor; ONNX Runtime has no kernel that"
        " multiplies them with 8-bit floats, here they cost what weights of these bits cost",
        "",
        {"layers": layers},
    )


def _tell(state: State, line: str) -> None:
    assert state.progress is not None
    state.progress(f"round-in-stages {line}")


class _Gptq(Observer):
    """Sums the second moment of a group's activation, then rounds the group."""

    def __init__(
        self,
        group: LayerGroup,
        state: State,
        store: WeightStore,
        keys: Mapping[Site, str],
        said: list[Diagnostic],
        short: list[_Short],
    ) -> None:
        assert state.plan is not None
        self._group = group
        self._plan: Plan = state.plan
        self._options = GptqOptions(**state.recipe.gptq.model_dump())
        self._store = store
        self._keys = keys
        self._said = said
        self._short = short
        self._moment: SecondMoment | None = None

    def update(self, x: npt.NDArray[Any]) -> None:
        if self._moment is None:
            self._moment = SecondMoment(x.shape[-1])
        self._moment.update(x)

    def finish(self) -> Mapping[Site, QTensor]:
        assert self._moment is not None
        rows = self._moment.rows
        hessian, self._moment = self._moment.sum(), None
        if 0 < rows < len(hessian):
            said = ", ".join(module_of(node) or node.name or "" for node in self._group.nodes)
            self._short.append(_Short(said, rows, len(hessian)))
        for nodes, spec in _alike(self._group.nodes, self._plan):
            weights = [np.asarray(constant(node.inputs[1]), np.float32) for node in nodes]
            where = ", ".join(module_of(node) or node.name or "" for node in nodes)
            matrix = np.concatenate(weights, axis=1)
            result = gptq(matrix, hessian, spec, self._options, where=where)
            self._say(where, result, len(hessian))
            parts = _columns(result.tensor, [weight.shape[1] for weight in weights])
            for node, part in zip(nodes, parts, strict=True):
                site = (node.name or "", 1)
                self._store.put(site, self._keys[site], part)
        mine = {site: self._keys[site] for site in self._group.sites}
        return StoredWeights({}, self._store, mine)

    def _say(self, where: str, result: GptqResult, channels: int) -> None:
        if result.dead:
            what = "all" if result.dead == channels else f"{result.dead} of {channels}"
            self._said.append(
                Diagnostic(
                    Code.DEAD_CHANNELS,
                    where,
                    f"{what} input channels were zero on all data: rounded to nearest there",
                    "check that the data exercises this part of the model",
                    {"dead": result.dead, "channels": channels},
                )
            )
        if result.damp > self._options.damp:
            self._said.append(
                Diagnostic(
                    Code.DAMPING_RAISED,
                    where,
                    f"the Hessian did not factor with damping {self._options.damp:g}, it did with "
                    f"{result.damp:g}",
                    "give more calibration data",
                    {"damp": result.damp},
                )
            )


def _alike(nodes: Iterable[ir.Node], plan: Plan) -> Iterator[tuple[list[ir.Node], QSpec]]:
    """Layers that can be rounded side by side: columns have nothing to do with one another.

    They have if scales are quantized again, as one vector per layer.
    """
    by_spec: dict[QSpec, list[ir.Node]] = {}
    for node in nodes:
        by_spec.setdefault(weight_spec(node, plan), []).append(node)
    for spec, found in by_spec.items():
        if spec.scales is None:
            yield found, spec
        else:
            yield from (([node], spec) for node in found)


def _columns(tensor: QTensor, widths: list[int]) -> list[QTensor]:
    """Some columns each, in order."""
    if len(widths) == 1:
        return [tensor]
    parts, start = [], 0
    for width in widths:
        own = slice(start, start + width)
        zero = None if tensor.zero_point is None else tensor.zero_point[:, own]
        q = np.ascontiguousarray(tensor.q[:, own])
        parts.append(QTensor(q, tensor.scale[:, own], zero, tensor.spec))
        start += width
    return parts

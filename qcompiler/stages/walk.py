"""Run a graph stage by stage; each layer sees what the rounded ones before it give."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import add_initializer
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler.stages.cut import LayerGroup, Site, Stage, constants_of, cut
from qcompiler.stages.spool import Spool

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["MEMORY", "Observer", "advance", "open_stage", "store_inputs", "walk"]

MEMORY = 1 << 30  # bytes of crossing values held in memory, by default

# Threads that wait between runs would spin on the cores that sums and rounding want.
SETTINGS = SessionSettings("all", {"session.intra_op.allow_spinning": "0"})


class Observer(abc.ABC):
    """Sees what one group of layers reads, then rounds them."""

    @abc.abstractmethod
    def update(self, x: npt.NDArray[Any]) -> None:
        """Take in the activation of one sample, ``[..., K]``, without its padding."""

    @abc.abstractmethod
    def finish(self) -> Mapping[Site, QTensor]:
        """Weights to go on with, ``[K, N]``; layers that are left out go on in float."""


def walk(
    model: ir.Model,
    groups: Sequence[LayerGroup],
    feeds: Iterable[Feed],
    observe: Callable[[LayerGroup], Observer | Mapping[Site, QTensor]],
    *,
    mask: str | None = None,
    memory: int = MEMORY,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Visit the groups in order; each product of the graph is computed once.

    A stage is a session of its own, and the weights of one stage are in memory at a time. What a
    stage reads are the values that cross its cut, for all samples.

    Args:
        model: Nodes in topological order; left as it is.
        groups: See :func:`~qcompiler.stages.cut.groups_of`.
        feeds: Iterated once.
        observe: Called with each group before anything runs: who watches it, or what its weights
            are, if that is known. The walk ends behind the last group that somebody watches.
        mask: Name of the input that is 0 on padding, as in ``calibration.mask``.
        memory: Bytes of crossing values held in memory; what is more goes to files.
        progress: Takes a line per stage.

    Returns:
        How many feeds there were; 0 when no group is watched.

    Raises:
        QcError: QC201 no feed; QC607 the runtime cannot run a stage; QC706 disk full; what the
            observers raise.
    """
    stages = cut(model.graph, groups)
    found = {group.value: observe(group) for stage in stages for group in stage.groups}
    watched = [any(isinstance(found[g.value], Observer) for g in s.groups) for s in stages]
    stages = stages[: max((i + 1 for i, any_ in enumerate(watched) if any_), default=0)]
    if not stages:
        return 0
    padding = Padding.of(model, mask)
    weights: dict[Site, QTensor] = {}
    with contextlib.closing(Spool(memory)) as spool:
        keeps = store_inputs(feeds, model.graph, stages, padding, spool)
        for index, stage in enumerate(stages):
            if progress is not None:
                progress(f"stage {index + 1}/{len(stages)}")
            mine = {group.value: found.pop(group.value) for group in stage.groups}
            watchers = {value: o for value, o in mine.items() if isinstance(o, Observer)}
            _run_stage(model, stage, weights, spool, watchers, padding, keeps)
            for node in stage.nodes:
                weights.pop((node.name or "", 1), None)
            for item in mine.values():
                weights.update(item.finish() if isinstance(item, Observer) else item)
    return len(keeps)


_Keep = npt.NDArray[np.bool_] | None


def store_inputs(
    feeds: Iterable[Feed],
    graph: ir.Graph,
    stages: Sequence[Stage],
    padding: Padding,
    spool: Spool,
) -> list[_Keep]:
    """Store the inputs that some stage wants; which rows of each feed are data."""
    wanted = {value for stage in stages for value in stage.inputs}
    wanted |= {group.value for stage in stages for group in stage.groups}
    names = [value.name or "" for value in graph.inputs if value in wanted]
    keeps: list[_Keep] = []
    for feed in feeds:
        for name in names:
            spool.put(name, len(keeps), np.asarray(feed[name]))
        keeps.append(padding.keep(feed))
    if not keeps:
        raise QcError(Code.EMPTY_CALIBRATION, "calibration", "found no feed, wanted at least one")
    return keeps


def _run_stage(
    model: ir.Model,
    stage: Stage,
    weights: Mapping[Site, QTensor],
    spool: Spool,
    watchers: Mapping[ir.Value, Observer],
    padding: Padding,
    keeps: Sequence[_Keep],
) -> None:
    names = [value.name or "" for value in stage.outputs]
    session = open_stage(model, stage, weights, spool) if names else None
    last = {value.name or "" for value in stage.last}
    for sample, keep in enumerate(keeps):
        made = {}
        if session is not None:
            feed = {value.name or "": spool.get(value.name or "", sample) for value in stage.inputs}
            made = run(session, feed, names)
        for value, watcher in watchers.items():
            name = value.name or ""
            x = made[name] if name in made else spool.get(name, sample)
            if keep is not None and padding.may_cut(value):
                x = padding.cut(x, keep)
            watcher.update(x)
        for name, array in made.items():
            if name not in last:
                spool.put(name, sample, array)
    for name in last:
        spool.drop(name)


def advance(
    model: ir.Model, stage: Stage, weights: Mapping[Site, QTensor], spool: Spool, count: int
) -> None:
    """Run a stage on all samples: what it reads is in the spool, what it gives goes there."""
    names = [value.name or "" for value in stage.outputs]
    if not names:
        return
    session = open_stage(model, stage, weights, spool)
    for sample in range(count):
        feed = {value.name or "": spool.get(value.name or "", sample) for value in stage.inputs}
        for name, array in run(session, feed, names).items():
            spool.put(name, sample, array)


def open_stage(
    model: ir.Model, stage: Stage, weights: Mapping[Site, QTensor], spool: Spool
) -> ort.InferenceSession:
    """A session of the stage, with rounded weights as the floats they stand for.

    Args:
        model: What the stage is a part of; left as it is.
        stage: Its inputs are in the spool, by whose form they are typed.
        weights: By site; those of other stages are not asked for.
        spool: See :class:`~qcompiler.stages.spool.Spool`.

    Raises:
        QcError: QC607, the runtime refuses it.
    """
    part = _stage_model(model, stage, weights, spool)
    session = open_session(part, settings=SETTINGS)
    # The session has them. A graph is full of cycles, which Python breaks late: they would pile up.
    for value in part.graph.initializers.values():
        value.const_value = None
    return session


def _stage_model(
    model: ir.Model, stage: Stage, weights: Mapping[Site, QTensor], spool: Spool
) -> ir.Model:
    constants = constants_of(stage.nodes)
    view = ir.GraphView(
        stage.inputs,
        stage.outputs,
        nodes=[*constants.nodes, *stage.nodes],
        initializers=constants.initializers,
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    graph = view.clone()
    for value in graph.inputs:
        dtype, sizes = spool.form(value.name or "")
        value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
        value.shape = ir.Shape(sizes)
    for node in graph:
        tensor = weights.get((node.name or "", 1))
        if tensor is not None:
            weight, rounded = node.inputs[1], tensor.dequantize()
            if weight is not None and weight.dtype is not None:
                rounded = rounded.astype(weight.dtype.numpy(), copy=False)
            floats = add_initializer(graph, f"{node.name}/rounded", rounded)
            node.replace_input_with(1, floats)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))

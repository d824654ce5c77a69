"""How far a model's outputs really move when its weights are rounded in one way or another."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qcompiler.analysis.blocks import repeated_blocks
from qcompiler.calibration.padding import Padding
from qcompiler.lift import array_to_torch
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import run
from qcompiler.sensitivity.gradients import is_logits
from qcompiler.stages.cut import Site, Stage
from qcompiler.stages.spans import finals, spans
from qcompiler.stages.spool import Spool
from qcompiler.stages.walk import MEMORY, advance, open_stage, store_inputs

__all__ = ["divergences"]


def divergences(
    model: ir.Model,
    feeds: Iterable[Feed],
    trials: Sequence[Mapping[Site, QTensor]],
    *,
    memory: int = MEMORY,
    progress: Callable[[str], None] | None = None,
) -> list[float]:
    """Distance of the outputs from the float model's, for each trial; by forward passes alone.

    The passes go block by block, all trials side by side: one block's weights are in memory, and a
    trial is run from the block on in which it first differs.

    Args:
        model: In float, nodes in topological order; left as it is.
        feeds: Some samples.
        trials: Rounded weights ``[K, N]``; what one leaves out stays float.
        memory: Bytes of values between blocks held in memory; what is more goes to files.
        progress: Takes a line per block.

    Returns:
        What :func:`~qcompiler.sensitivity.gradients.weight_damages` foretells of small errors: of
        logits twice the divergence (Kullback-Leibler, nats) of all tokens, of another output the
        squared error as a share of its square; their sum, and its mean over the feeds.

    Raises:
        QcError: QC201 no feed; QC607 the runtime cannot run a block; QC706 disk full.
    """
    stages = [stage for stage in spans(model.graph, repeated_blocks(model.graph)) if stage.nodes]
    totals = [0.0] * len(trials)
    with contextlib.closing(Spool(memory)) as spool:
        count = len(store_inputs(feeds, model.graph, stages, Padding.of(model, None), spool))
        for index, stage in enumerate(stages, 1):
            if progress is not None:
                progress(f"trials in part {index}/{len(stages)}")
            ends = finals(stage)
            given = dataclasses.replace(stage, outputs=tuple({*stage.outputs, *ends}))
            advance(model, given, {}, spool, count)
            for number, trial in enumerate(trials):
                moved = _advance_trial(model, given, number, trial, spool, count)
                for value in ends if moved else ():
                    for sample in range(count):
                        wanted, found = (
                            spool.get(name, sample)
                            for name in (value.name or "", _of(number, value))
                        )
                        totals[number] += _distance(value, wanted, found)
                    if value not in stage.outputs:
                        spool.drop(_of(number, value))
            over = {*stage.last, *(value for value in ends if value not in stage.outputs)}
            for value in over:
                spool.drop(value.name or "")
                for number in range(len(trials)):
                    spool.drop(_of(number, value))
    return [total / count for total in totals]


def _of(number: int, value: ir.Value) -> str:
    """Where the spool has a value as a trial makes it; absent as long as it is that of float."""
    return f"{value.name} in trial {number}"


def _advance_trial(
    model: ir.Model,
    stage: Stage,
    number: int,
    trial: Mapping[Site, QTensor],
    spool: Spool,
    count: int,
) -> bool:
    """Run a stage as a trial has it; False where that is no other than in float."""
    moved = {value for value in stage.inputs if spool.has(_of(number, value))}
    changed = any((node.name or "", 1) in trial for node in stage.nodes)
    if not stage.outputs or not (moved or changed):
        return False
    session = open_stage(model, stage, trial, spool)
    names = {value.name or "": value for value in stage.outputs}
    for sample in range(count):
        feed = {
            value.name or "": spool.get(
                _of(number, value) if value in moved else value.name or "", sample
            )
            for value in stage.inputs
        }
        for name, array in run(session, feed, list(names)).items():
            spool.put(_of(number, names[name]), sample, array)
    return True


def _distance(value: ir.Value, wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    if wanted.dtype.kind != "f":  # text and numbers that index pass as they are
        return 0.0
    want, got = array_to_torch(wanted).float(), array_to_torch(found).float()
    if is_logits(value, want):
        shares, moved = want.log_softmax(-1), got.log_softmax(-1)
        return 2.0 * float((shares.exp() * (shares - moved)).sum())
    return float((got - want).square().sum() / want.square().sum().clamp(min=1e-24))

"""Run a graph block by block, in float and with what is rounded so far, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import overload

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.analysis.blocks import Block
from qcompiler.calibration.padding import Padding
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.stages.cut import Site, Stage
from qcompiler.stages.spans import finals, spans
from qcompiler.stages.spool import Spool
from qcompiler.stages.walk import MEMORY, advance, store_inputs

__all__ = ["BlockVisit", "Samples", "walk_blocks"]


class Samples(Sequence[tuple[Tensor, ...]]):
    """Some values of each sample, read when asked for: a model's activations may not fit memory."""

    def __init__(self, spool: Spool, values: Sequence[ir.Value], count: int) -> None:
        """Of the values in the spool."""
        self._spool = spool
        self._names = [value.name or "" for value in values]
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[Tensor, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Tensor, ...] | Sequence[tuple[Tensor, ...]]:
        """Tensors of one sample, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        arrays = (self._spool.get(name, index % self._count) for name in self._names)
        return tuple(torch.from_numpy(np.array(array)) for array in arrays)


@dataclasses.dataclass(frozen=True)
class BlockVisit:
    """A block at the moment when all before it is rounded.

    Attributes:
        name: Of the block.
        nodes: Its nodes, and those that lead up to it from the block before, in graph order.
        inputs: Values from before that they read, text left out.
        outputs: Values that later blocks read, text left out.
        samples: What they read in the rounded model.
        exact: What they read in the float model.
        targets: The outputs in the float model.
        keep: Rows that are data, ``[batch, sequence]``, by sample; None where all are.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    samples: Samples
    exact: Samples
    targets: Samples
    keep: Sequence[Tensor | None]


def walk_blocks(
    model: ir.Model,
    blocks: Sequence[Block],
    feeds: Iterable[Feed],
    visit: Callable[[BlockVisit], Mapping[Site, QTensor]],
    *,
    mask: str | None = None,
    memory: int = MEMORY,
) -> int:
    """Visit the blocks in order; nothing behind the last one is run.

    Args:
        model: Nodes in topological order; left as it is.
        blocks: See :func:`~qcompiler.analysis.blocks.repeated_blocks`.
        feeds: Iterated once.
        visit: Returns rounded weights ``[K, N]`` of the block, with which the walk goes on; a
            layer that it leaves out goes on in float.
        mask: Name of the input that is 0 on padding, as in ``calibration.mask``.
        memory: Bytes of crossing values held in memory; what is more goes to files.

    Returns:
        How many feeds there were.

    Raises:
        QcError: QC201 no feed; QC607 the runtime cannot run a block; QC706 disk full.
    """
    stages = _stages_of_blocks(model.graph, blocks)
    padding = Padding.of(model, mask)
    with (
        contextlib.closing(Spool(memory // 2)) as exact,
        contextlib.closing(Spool(memory // 2)) as rounded,
    ):
        keeps = store_inputs(feeds, model.graph, stages, padding, exact)
        for value in model.graph.inputs:
            _copy(exact, rounded, value.name or "", len(keeps))
        rows = [None if keep is None else torch.from_numpy(keep) for keep in keeps]
        for index, stage in enumerate(stages):
            advance(model, stage, {}, exact, len(keeps))
            weights: Mapping[Site, QTensor] = {}
            if index:
                block = blocks[index - 1]
                inputs, outputs = (_numbers(exact, of) for of in (stage.inputs, stage.outputs))
                weights = visit(
                    BlockVisit(
                        block.name,
                        stage.nodes,
                        inputs,
                        outputs,
                        samples=Samples(rounded, inputs, len(keeps)),
                        exact=Samples(exact, inputs, len(keeps)),
                        targets=Samples(exact, outputs, len(keeps)),
                        keep=rows,
                    )
                )
                advance(model, stage, weights, rounded, len(keeps))
            else:
                for value in stage.outputs:
                    _copy(exact, rounded, value.name or "", len(keeps))
            for value in stage.last:
                exact.drop(value.name or "")
                rounded.drop(value.name or "")
    return len(keeps)


def _stages_of_blocks(graph: ir.Graph, blocks: Sequence[Block]) -> list[Stage]:
    """The stages up to the last block: nobody needs what only the end of the graph reads."""
    *stages, _ = spans(graph, blocks)
    if blocks and not stages[-1].outputs:  # the model ends with the last block
        stages[-1] = dataclasses.replace(stages[-1], outputs=finals(stages[-1]))
    return stages


def _numbers(spool: Spool, values: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    """The values that torch can compute on: those whose first sample is no text."""
    return tuple(value for value in values if spool.get(value.name or "", 0).dtype != object)


def _copy(source: Spool, target: Spool, name: str, count: int) -> None:
    if source.has(name):
        for sample in range(count):
            target.put(name, sample, source.get(name, sample))

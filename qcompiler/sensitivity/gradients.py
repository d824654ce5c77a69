"""What rounding a weight does to the model's outputs, to first order, for all layers at once.

A layer's error ``e_t`` at row ``t`` changes a loss by ``g_t . e_t``, ``g`` being the gradient of
the loss by the layer's output. For a loss that is drawn from the model itself the mean of the
squares is the divergence that the error makes (Fisher information: Martens 2020, arXiv 1412.1193,
section 5; for rounding: Li et al. 2021, arXiv 2102.05426, section 3.2). One backward pass gives
``g`` for every layer.

The pass goes block by block: what crosses from one to the next is computed first and kept, then
each block, the last first, is lifted alone and handed the gradients of what it gave.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qcompiler.analysis.blocks import repeated_blocks
from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import QcError
from qcompiler.lift import array_to_torch, lift, refusals
from qcompiler.lift.lifted import Lifted
from qcompiler.pipeline.contract import Feed
from qcompiler.stages.cut import Stage
from qcompiler.stages.spans import finals, spans
from qcompiler.stages.spool import Spool
from qcompiler.stages.walk import MEMORY, advance, store_inputs

__all__ = ["WeightDamages", "is_logits", "weight_damages"]

_ROWS = 256  # of a sample that errors are computed for, of all that gradients came from
_VOCABULARY = 64  # entries at least of what is taken for logits of tokens


@dataclasses.dataclass(frozen=True)
class WeightDamages:
    """What was found out about layers.

    Attributes:
        found: By node name and option: mean over the samples of ``sum_t (g_t . e_t)^2``.
        unreached: Layers from which no gradient leads to all outputs, and the refusal (QC302) of an
            operator behind them.
    """

    found: Mapping[str, Mapping[int, float]]
    unreached: Mapping[ir.Node, QcError]


def weight_damages(
    model: ir.Model,
    layers: Sequence[ir.Node],
    feeds: Iterable[Feed],
    options: Sequence[int],
    error: Callable[[ir.Node, int], npt.NDArray[np.float32]],
    *,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Callable[[str], None] | None = None,
) -> WeightDamages:
    """Damage of each option for each layer, alone; only their ratios mean something.

    Args:
        model: In float, nodes in topological order; left as it is.
        layers: MatMul nodes with constant weights ``[K, N]``.
        feeds: A few samples; each costs two forward passes and a backward pass.
        options: Keys for ``error``, as numbers of bits.
        error: Rounded less float weight of a layer under an option, ``[K, N]``; asked once.
        seed: Of what the loss draws.
        memory: Bytes of values between blocks held in memory; what is more goes to files.
        progress: Takes a line per block.

    Raises:
        QcError: QC201 no feed; QC607 the runtime cannot run a block; QC706 disk full.
    """
    graph = model.graph
    refused = refusals(graph)
    stages = spans(graph, repeated_blocks(graph), front=refused)
    behind = next(iter(refused.values())) if refused else None
    before = set(stages[0].nodes) if refused else set()
    unreached = {node: behind for node in layers if node in before and behind is not None}
    totals = {str(n.name): dict.fromkeys(options, 0.0) for n in layers if n not in unreached}
    with (
        contextlib.closing(Spool(memory // 2)) as values,
        contextlib.closing(Spool(memory // 2)) as slopes,
    ):
        count = len(store_inputs(feeds, graph, stages, Padding.of(model, None), values))
        for stage in stages[:-1]:
            advance(model, stage, {}, values, count)
        backward = _Backward(values, slopes, count, seed)
        visited = [stage for stage in stages[bool(refused) :] if stage.nodes]
        for index, stage in enumerate(reversed(visited), 1):
            if progress is not None:
                progress(f"gradients of part {index}/{len(visited)}")
            mine = set(stage.nodes)
            for node, x, g in backward.through(stage, [n for n in layers if n in mine]):
                for option in options:
                    e = x @ torch.from_numpy(error(node, option))
                    damage = float((e * g).sum(-1).square().sum()) / count
                    totals[str(node.name)][option] = damage
    return WeightDamages(totals, unreached)


class _Tap(nn.Module):  # type: ignore[misc]
    """Remembers what flows by, and from there on gradients are wanted."""

    def __init__(self, wants_gradient: bool) -> None:
        super().__init__()
        self.wants_gradient = wants_gradient
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.wants_gradient:
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            x.retain_grad()
        self.seen = x
        return x


class _Backward:
    """Gradients of the losses of all samples, carried from the last stage to the first."""

    def __init__(self, values: Spool, slopes: Spool, count: int, seed: int) -> None:
        self._values = values
        self._slopes = slopes
        self._count = count
        self._generator = torch.Generator().manual_seed(seed)
        self._given: dict[ir.Value, list[str]] = {}  # what stages found for a value, by name

    def through(
        self, stage: Stage, layers: Sequence[ir.Node]
    ) -> Iterable[tuple[ir.Node, Tensor, Tensor]]:
        """Take the gradients through a stage.

        Returns:
            Each of its layers, with rows ``[R, K]`` that it read in all samples and the gradients
            ``[R, N]`` of its outputs there; none for one on which no output depends.
        """
        ends = finals(stage)
        crossing = tuple(value for value in stage.outputs if value in self._given)
        lifted = lift(stage.nodes, inputs=stage.inputs, outputs=[*ends, *crossing])
        reads, gives = _taps(lifted, layers)
        rows: dict[ir.Node, list[tuple[Tensor, Tensor]]] = {}
        for sample in range(self._count):
            inputs = self._inputs(stage, sample)
            outputs = lifted(*inputs)
            loss = self._loss(ends, outputs[: len(ends)])
            loss = loss + self._product(crossing, outputs[len(ends) :], sample)
            if loss.requires_grad:
                loss.backward()
            self._keep(stage, sample, inputs)
            for node, tap in gives.items():
                x, y = reads[node].seen, tap.seen
                if x is not None and y is not None and y.grad is not None:
                    rows.setdefault(node, []).append(_some_rows(x, y.grad, self._generator))
                tap.seen = None
            for tap in reads.values():
                tap.seen = None
        lifted.release()
        for value in crossing:
            for name in self._given.pop(value):
                self._slopes.drop(name)
        for node, found in rows.items():
            yield node, torch.cat([x for x, _ in found]), torch.cat([g for _, g in found])

    def _inputs(self, stage: Stage, sample: int) -> list[Any]:
        """What the stage reads; the gradients of floats that an earlier stage made are wanted."""
        found = [array_to_torch(self._values.get(v.name or "", sample)) for v in stage.inputs]
        for value, item in zip(stage.inputs, found, strict=True):
            if isinstance(item, Tensor) and value.producer() is not None:
                item.requires_grad_(item.is_floating_point())
        return found

    def _loss(self, ends: Sequence[ir.Value], outputs: Sequence[Any]) -> Tensor:
        """Of the graph's outputs that the stage makes; text among them passes as it is."""
        found = [
            _loss(value, output, self._generator)
            for value, output in zip(ends, outputs, strict=True)
            if isinstance(output, Tensor) and output.requires_grad
        ]
        return torch.stack(found).sum() if found else torch.zeros(())

    def _product(self, crossing: Sequence[ir.Value], outputs: Sequence[Any], sample: int) -> Tensor:
        """Its gradients are those that later stages handed back, taken through this one."""
        found = torch.zeros(())
        for value, output in zip(crossing, outputs, strict=True):
            if output.requires_grad:
                parts = [self._slopes.get(name, sample) for name in self._given[value]]
                slope = sum(map(array_to_torch, parts[1:]), array_to_torch(parts[0]))
                found = found + (output * slope).sum()
        return found

    def _keep(self, stage: Stage, sample: int, inputs: Sequence[Any]) -> None:
        for value, item in zip(stage.inputs, inputs, strict=True):
            if not isinstance(item, Tensor) or item.grad is None:
                continue
            name = f"{value.name} by {stage.nodes[0].name}"
            names = self._given.setdefault(value, [])
            if name not in names:
                names.append(name)
            self._slopes.put(name, sample, item.grad.numpy())


def _taps(
    lifted: Lifted, layers: Sequence[ir.Node]
) -> tuple[dict[ir.Node, _Tap], dict[ir.Node, _Tap]]:
    """What shows for each layer the value that it reads, and the one that it gives."""
    by_value: dict[ir.Value, _Tap] = {}
    reads: dict[ir.Node, _Tap] = {}
    gives: dict[ir.Node, _Tap] = {}
    for node in layers:
        value = node.inputs[0]
        assert value is not None
        if node not in lifted.calls:  # the outputs do not depend on it
            continue
        if value not in by_value:
            by_value[value] = _Tap(False)
            lifted.put_behind(value, by_value[value])
        reads[node], gives[node] = by_value[value], _Tap(True)
        lifted.put_behind(node.outputs[0], gives[node])
    return reads, gives


def _some_rows(x: Tensor, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of what a layer reads and of its output's gradient, these so large as if all rows."""
    x = x.detach().float().reshape(-1, x.shape[-1])
    g = g.float().reshape(-1, g.shape[-1])
    if len(x) <= _ROWS:
        return x, g
    chosen = torch.randperm(len(x), generator=generator)[:_ROWS]
    return x[chosen], g[chosen] * (len(x) / _ROWS) ** 0.5


def is_logits(value: ir.Value, output: Tensor) -> bool:
    """Whether an output is one of logits of tokens, ``[..., vocabulary]``."""
    return value.name == "logits" and output.shape[-1] >= _VOCABULARY


def _loss(value: ir.Value, output: Tensor, generator: torch.Generator) -> Tensor:
    """Its gradients' squares, on average, measure how far the output moves.

    For logits the likelihood of classes drawn from them, else random signs on an output of
    length 1.
    """
    if is_logits(value, output):
        flat = output.reshape(-1, output.shape[-1])
        drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)
        return nn.functional.cross_entropy(flat, drawn[:, 0], reduction="sum")
    signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
    return (output * signs).sum() / output.detach().norm().clamp(min=1e-12)

"""TEQ: learn factors for input channels that make a block's weights round better.

Cheng et al. 2023, "TEQ: Trainable Equivalent Transformation for Quantization of LLMs" (arXiv
2310.10944). With factors ``s`` by input channel a layer computes ``(x / s) Q(s W)``; weights stay,
only ``s`` is trained, through the rounding as if it were not there. The paper trains all factors on
the language model's own loss; here a block's factors are trained on the error of the block, so that
one block at a time is in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qcompiler.algorithms.block_data import BlockData, Errors, Sample
from qcompiler.algorithms.rounded_weight import RoundedWeight, extrema, in_groups, round_in_groups
from qcompiler.lift.lifted import Lifted
from qcompiler.runtime.memory import reused_memory
from qcompiler.schemes import QSpec

__all__ = ["TeqGroup", "TeqOptions", "TeqResult", "teq"]

_SMALLEST = 1e-5  # a factor, as in the published code


@dataclasses.dataclass(frozen=True, slots=True)
class TeqOptions:
    """How long and how hard to train.

    Attributes:
        iters: Steps for each block.
        batch_size: Samples of one step.
        lr: Step of Adam on the logarithms of the factors, falling to 0 in a line.
        warmup: Share of the steps in which the step grows from 0.
        seed: Of the order in which samples are taken.
    """

    iters: int = 100
    batch_size: int = 4
    lr: float = 3e-2
    warmup: float = 0.05
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TeqGroup:
    """Weights that share factors, since their layers read one activation.

    Attributes:
        weights: Constants ``[K, N]``.
        ties: For each channel a number; channels of one number get one factor. None: all free.
    """

    weights: tuple[ir.Value, ...]
    ties: npt.NDArray[np.intp] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TeqResult:
    """What was learned.

    Attributes:
        factors: ``[K]`` float64 for each group: weights are multiplied, activations divided.
        loss_before: Mean squared error of the block without factors.
        loss_after: The same with them; not larger, since factors that do not help become 1.
    """

    factors: Sequence[npt.NDArray[np.float64]]
    loss_before: float
    loss_after: float


def teq(
    block: Lifted,
    groups: Sequence[TeqGroup],
    specs: Mapping[ir.Value, QSpec],
    inputs: Sequence[Sample],
    targets: Sequence[Sample],
    *,
    keep: Sequence[Tensor | None] | None = None,
    options: TeqOptions = TeqOptions(),
    progress: Callable[[int, float], None] | None = None,
) -> TeqResult:
    """Learn the factors of one block.

    Args:
        block: The float block; rounding is put between its constants and their readers.
        groups: The weights that get factors.
        specs: How each weight is stored, also those without factors.
        inputs: For each sample what the block reads.
        targets: For each sample what the float block gives.
        keep: For each sample which rows ``[batch, sequence]`` are data, None being all.
        options: See :class:`TeqOptions`.
        progress: Told the step, and the error of its batch as a share of that without factors.
    """
    logs = []
    for group in groups:
        channels = block.constant(group.weights[0]).shape[0]
        log = _Log(channels, group.ties)
        logs.append(log)
        for value in group.weights:
            block.put_behind(value, _Transformed(specs[value], log))
    alone = set(specs) - {value for group in groups for value in group.weights}
    for value in alone:
        block.put_behind(value, RoundedWeight(block.constant(value), specs[value]))
    data = BlockData(block, inputs, targets, keep)
    data.allow_half_precision()
    with reused_memory():
        start = data.all_errors(options.batch_size)
        _train(data, start, logs, options, progress)
        before = float(start.mean())
        after = float(data.all_errors(options.batch_size).mean())
    if after < before:
        return TeqResult([log.factors() for log in logs], before, after)
    return TeqResult([np.ones(len(log)) for log in logs], before, before)


class _Log(nn.Module):  # type: ignore[misc]
    """Logarithms of the factors of one group; zero has no effect."""

    def __init__(self, channels: int, ties: npt.NDArray[np.intp] | None) -> None:
        super().__init__()
        home = np.arange(channels) if ties is None else np.unique(ties, return_inverse=True)[1]
        self.register_buffer("home", torch.from_numpy(np.asarray(home, np.int64)))
        self.free = nn.Parameter(torch.zeros(int(home.max()) + 1))

    def __len__(self) -> int:
        return len(self.home)

    def forward(self) -> Tensor:
        return self.free.exp().clamp(min=_SMALLEST)[self.home]

    def factors(self) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            return np.asarray(self().cpu().double().numpy())


class _Transformed(nn.Module):  # type: ignore[misc]
    """``Q(s W) / s``: what a layer that reads ``x / s`` does to ``x``."""

    def __init__(self, spec: QSpec, log: _Log) -> None:
        super().__init__()
        self.spec = spec
        self.log = log

    def forward(self, weight: Tensor) -> Tensor:
        factors = self.log()[:, None]
        groups, back = in_groups(weight * factors, self.spec)
        rounded = back(round_in_groups(groups, *extrema(groups), self.spec)) / factors
        return rounded.to(weight.dtype)


def _train(
    data: BlockData,
    start: Errors,
    logs: Sequence[_Log],
    options: TeqOptions,
    progress: Callable[[int, float], None] | None,
) -> None:
    """Leave the best factors seen, by what is left of the error of their batch, in the modules."""
    free = [log.free for log in logs]
    if not free or not options.iters:
        return
    optimizer = torch.optim.Adam(free, lr=options.lr, betas=(0.9, 0.9))
    warm = max(1, round(options.warmup * options.iters))
    best, kept = float("inf"), [item.detach().clone() for item in free]
    for step, chosen in enumerate(data.batches(options.batch_size, options.iters, options.seed)):
        rising = min(1.0, (step + 1) / warm)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(rising, 1 - step / options.iters)
        errors = data.errors(chosen)
        share = float(errors.sums.detach().sum() / start.sums[list(chosen)].sum())
        if progress is not None:
            progress(step, share)
        if share < best:
            best, kept = share, [item.detach().clone() for item in free]
        optimizer.zero_grad()
        (errors.mean() / start.mean()).backward()
        optimizer.step()
    with torch.no_grad():
        for item, was in zip(free, kept, strict=True):
            item.copy_(was)

"""AutoRound (SignRound): learn the rounding and the ranges of all weights of a block together.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs" (arXiv 2309.05516). A weight becomes ``s (clamp(round(w / s + V) + z) - z)``, where ``V``
moves by at most half a step and the range that ``s`` and ``z`` come from may shrink. Both are
trained by the sign of the gradient of the block's error: what the float block gives on float
inputs is the target, what the quantized block gives on the inputs it gets in the quantized model
is compared with it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.algorithms.block_data import BlockData, Errors, Sample
from qcompiler.algorithms.rounded_weight import RoundedWeight
from qcompiler.lift.lifted import Lifted
from qcompiler.numerics.qtensor import QTensor
from qcompiler.runtime.memory import reused_memory
from qcompiler.schemes import QSpec

__all__ = ["AutoRoundOptions", "AutoRoundResult", "autoround"]


@dataclasses.dataclass(frozen=True, slots=True)
class AutoRoundOptions:
    """How long and how hard to train; names and defaults are those of the auto-round package.

    Attributes:
        iters: Steps for each block.
        batch_size: Samples of one step.
        gradient_accumulate_steps: Batches whose gradients are added up before a step.
        lr: Step of the rounding at the start, falling to 0 in a line; None is ``1 / iters``, with
            which a weight can just cross half a step (``2 / iters`` from 1,000 steps and at most 3
            bits on).
        minmax_lr: Step of the ranges; None is ``lr``.
        enable_minmax_tuning: Learn the ranges as well.
        dynamic_max_gap: Stop after so many steps without a new best; -1 never does.
        not_use_best_mse: Keep the last step's weights rather than those of the lowest loss.
        seed: Of the order in which samples are taken.
    """

    iters: int = 200
    batch_size: int = 8
    gradient_accumulate_steps: int = 1
    lr: float | None = None
    minmax_lr: float | None = None
    enable_minmax_tuning: bool = True
    dynamic_max_gap: int = -1
    not_use_best_mse: bool = False
    seed: int = 0

    def steps_of(self, bits: int) -> tuple[float, float]:
        """First steps of the rounding and of the ranges."""
        lr = self.lr
        if lr is None:
            lr = (2.0 if self.iters >= 1000 and bits <= 3 else 1.0) / max(self.iters, 1)
        return lr, lr if self.minmax_lr is None else self.minmax_lr


@dataclasses.dataclass(frozen=True, slots=True)
class AutoRoundResult:
    """What was learned and what it bought.

    Attributes:
        tensors: The rounded weights, by constant.
        loss_before: Mean squared error of the block with weights rounded to nearest.
        loss_after: The same with ``tensors``, on the same samples.
        steps: Steps taken.
        half_precision: Whether products were computed in bfloat16.
    """

    tensors: Mapping[ir.Value, QTensor]
    loss_before: float
    loss_after: float
    steps: int
    half_precision: bool = False


def autoround(
    block: Lifted,
    specs: Mapping[ir.Value, QSpec],
    inputs: Sequence[Sample],
    targets: Sequence[Sample],
    *,
    keep: Sequence[Tensor | None] | None = None,
    options: AutoRoundOptions = AutoRoundOptions(),
    progress: Callable[[int, float], None] | None = None,
) -> AutoRoundResult:
    """Round the weights of a block.

    Args:
        block: The float block; rounding is put between its constants and their readers.
        specs: How each constant is to be quantized: integers in groups along one axis, or one
            scale for each index of an axis.
        inputs: For each sample what the block gets in the quantized model.
        targets: For each sample what the float block gives on float inputs.
        keep: For each sample which rows ``[batch, sequence]`` are data, None being all.
        options: See :class:`AutoRoundOptions`.
        progress: Told the step, and the error of its batch as a share of rounding to nearest.

    Returns:
        Never worse than rounding to nearest on the samples: if learning did not help, that is it.
    """
    rounded = {value: RoundedWeight(block.constant(value), spec) for value, spec in specs.items()}
    for value, module in rounded.items():
        block.put_behind(value, module)
    data = BlockData(block, inputs, targets, keep)
    half = data.allow_half_precision()
    if half:
        for module in rounded.values():
            module.store_as(torch.bfloat16)
    nearest = {value: module.to_qtensor() for value, module in rounded.items()}
    with reused_memory():
        start = data.all_errors(options.batch_size)
        steps = _train(data, start, list(rounded.values()), options, progress)
        before = float(start.mean())
        after = float(data.all_errors(options.batch_size).mean())
    if not after < before:
        return AutoRoundResult(nearest, before, before, steps, half)
    tensors = {value: module.to_qtensor() for value, module in rounded.items()}
    return AutoRoundResult(tensors, before, after, steps, half)


def _train(
    data: BlockData,
    start: Errors,
    weights: Sequence[RoundedWeight],
    options: AutoRoundOptions,
    progress: Callable[[int, float], None] | None,
) -> int:
    """Leave the best that was seen in the modules; returns the steps taken.

    Samples differ in how hard they are: a batch is judged by its share of the error that it had
    under rounding to nearest, so that an easy batch is not taken for good weights.
    """
    parts = options.gradient_accumulate_steps
    batches = data.batches(options.batch_size, options.iters * parts, options.seed)
    best, best_at, step = float("inf"), 0, -1
    for weight in weights:
        weight.keep()
    for step in range(options.iters):
        total = nearest = 0.0
        for chosen in itertools.islice(batches, parts):
            errors = data.errors(chosen)
            errors.mean().backward()
            total += float(errors.sums.detach().sum())
            nearest += float(start.sums[list(chosen)].sum())
        share = total / nearest if nearest else 0.0
        if progress is not None:
            progress(step, share)
        if share < best or options.not_use_best_mse:
            best, best_at = share, step
            for weight in weights:
                weight.keep()
        if 0 <= options.dynamic_max_gap <= step - best_at:
            break
        left = 1 - step / options.iters
        for weight in weights:
            lr, minmax_lr = options.steps_of(weight.spec.bits or weight.spec.dtype.bitwidth)
            weight.descend(left * lr, left * minmax_lr if options.enable_minmax_tuning else 0.0)
    for weight in weights:
        weight.restore()
    return step + 1

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
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qcompiler.lift.lifted import Lifted
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import Granularity, QSpec

__all__ = [
    "AutoRoundOptions",
    "AutoRoundResult",
    "BlockData",
    "RoundedWeight",
    "Sample",
    "autoround",
    "extrema",
    "in_groups",
    "round_in_groups",
]

Sample = Sequence[Tensor]  # the block's inputs, or its outputs, on one feed


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
    """

    tensors: Mapping[ir.Value, QTensor]
    loss_before: float
    loss_after: float
    steps: int


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
        progress: Told the step and its loss.

    Returns:
        Never worse than rounding to nearest on the samples: if learning did not help, that is it.
    """
    rounded = {value: RoundedWeight(block.constant(value), spec) for value, spec in specs.items()}
    for value, module in rounded.items():
        block.put_behind(value, module)
    data = BlockData.of(block, inputs, targets, keep)
    before = data.mean_loss(options.batch_size)
    start = {value: module.to_qtensor() for value, module in rounded.items()}
    steps = _train(data, list(rounded.values()), options, progress)
    after = data.mean_loss(options.batch_size)
    if not after < before:
        return AutoRoundResult(start, before, before, steps)
    tensors = {value: module.to_qtensor() for value, module in rounded.items()}
    return AutoRoundResult(tensors, before, after, steps)


class RoundedWeight(nn.Module):  # type: ignore[misc]
    """A weight under learned rounding and ranges.

    Attributes:
        shift: ``V``, shape of the weight, in steps.
        low: Share of each group's minimum that is kept, in [0, 1].
        high: Share of its maximum.
    """

    def __init__(self, weight: Tensor, spec: QSpec) -> None:
        """Start at rounding to nearest of the full range."""
        super().__init__()
        if spec.is_float8 or spec.granularity not in (Granularity.BLOCK, Granularity.CHANNEL):
            raise ValueError(f"AutoRound learns integers in groups or by channel, not {spec}")
        self.spec = spec
        flat, self._back = in_groups(weight.detach(), spec)
        lo, hi = extrema(flat)
        self.register_buffer("groups", flat)
        self.register_buffer("lo", lo)
        self.register_buffer("hi", hi)
        self.shift = nn.Parameter(torch.zeros_like(flat))
        self.low = nn.Parameter(torch.ones_like(self.lo))
        self.high = nn.Parameter(torch.ones_like(self.hi))

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Integers (as floats), scale and zero point by group."""
        lo, hi = self.lo * self.low.clamp(0, 1), self.hi * self.high.clamp(0, 1)
        return round_in_groups(self.groups, lo, hi, self.spec, self.shift)

    def forward(self, _: Tensor) -> Tensor:
        """The values that the integers stand for, in the weight's shape."""
        q, scale, zero = self.integers()
        return self._back((q - zero) * scale)

    def to_qtensor(self) -> QTensor:
        """The integers with their scales."""
        with torch.no_grad():
            q, scale, zero = (item.cpu() for item in self.integers())
            spread = self._back(q)
        element = np.int8 if self.spec.is_signed else np.uint8
        zeros = _params(zero, spread.ndim, self.spec).astype(np.int32)
        return QTensor(
            spread.numpy().astype(element),
            _params(scale, spread.ndim, self.spec),
            None if self.spec.is_signed and not zeros.any() else zeros,
            self.spec,
        )


def extrema(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest element of each group, and 0."""
    return groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)


def round_in_groups(
    groups: Tensor, lo: Tensor, hi: Tensor, spec: QSpec, shift: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers (as floats), scales and zero points; gradients pass straight through rounding.

    Args:
        groups: ``[..., group_size]``.
        lo: ``[..., 1]``, at most 0.
        hi: ``[..., 1]``, at least 0.
        spec: Integers.
        shift: Added before rounding, in steps.
    """
    if spec.symmetric:
        # the element of largest magnitude gets the number that the other side lacks
        reach = torch.where(hi > -lo, hi, lo)
        below = spec.middle - spec.qmin
        scale = torch.where(reach == 0, torch.ones_like(reach), -reach / below)
        if below <= spec.qmax - spec.middle:  # no such number: signed types that leave it out
            scale = scale.abs()
        zero = torch.full_like(scale, spec.middle)
    else:
        scale = (hi - lo) / (spec.qmax - spec.qmin)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = _straight((spec.qmin - lo / scale).clamp(spec.qmin, spec.qmax))
    steps = groups / scale
    q = _straight(steps if shift is None else steps + shift) + zero
    return q.clamp(spec.qmin, spec.qmax), scale, zero


def in_groups(weight: Tensor, spec: QSpec) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The weight as ``[others..., groups, group_size]``, and the way back.

    A ragged last group is filled up with its last element, which changes neither its range nor,
    being cut off again, any result.
    """
    assert spec.axis is not None
    if spec.granularity is Granularity.CHANNEL:
        moved = weight.movedim(spec.axis, 0)
        shape = moved.shape
        return (
            moved.reshape(shape[0], -1).contiguous(),
            lambda flat: flat.reshape(shape).movedim(0, spec.axis),
        )
    assert spec.group_size is not None
    size = spec.group_size
    moved = weight.movedim(spec.axis, -1)
    count = moved.shape[-1]
    missing = -count % size
    if missing:
        moved = torch.cat([moved, moved[..., -1:].expand(*moved.shape[:-1], missing)], -1)
    grouped = moved.reshape(*moved.shape[:-1], -1, size).contiguous()
    return grouped, lambda flat: flat.flatten(-2)[..., :count].movedim(-1, spec.axis)


def _params(params: Tensor, rank: int, spec: QSpec) -> npt.NDArray[np.float32]:
    """Parameters ``[others..., groups, 1]`` or ``[channels, 1]`` as a QTensor has them."""
    assert spec.axis is not None
    flat = params.squeeze(-1)
    if spec.granularity is Granularity.CHANNEL:
        shape = [1] * rank
        shape[spec.axis] = -1
        return np.asarray(flat.reshape(shape).numpy(), np.float32)
    return np.ascontiguousarray(flat.movedim(-1, spec.axis).numpy(), np.float32)


def _straight(x: Tensor) -> Tensor:
    """Round; the gradient passes as if nothing had been rounded (Bengio et al. 2013)."""
    return x + (x.round() - x).detach()


@dataclasses.dataclass(frozen=True)
class BlockData:
    """A block and its samples."""

    block: Lifted
    inputs: Sequence[Sample]
    targets: Sequence[Sample]
    keep: Sequence[Tensor | None] | None
    device: torch.device

    @classmethod
    def of(
        cls,
        block: Lifted,
        inputs: Sequence[Sample],
        targets: Sequence[Sample],
        keep: Sequence[Tensor | None] | None,
    ) -> BlockData:
        """On a GPU where there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        block.module.to(device)
        return cls(block, inputs, targets, keep, device)

    def batches(self, size: int, count: int, seed: int) -> Iterator[list[int]]:
        """Which samples each of ``count`` steps takes: all in random order, again and again."""
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for _ in range(count):
            while len(order) < size:
                order += torch.randperm(len(self.inputs), generator=generator).tolist()
            yield order[:size]
            order = order[size:]

    def loss(self, chosen: Sequence[int]) -> Tensor:
        """Mean squared error over some samples, padding left out."""
        total, count = torch.zeros((), device=self.device), 0
        for index in chosen:
            found = self.block(*(x.to(self.device) for x in self.inputs[index]))
            rows = None if self.keep is None else self.keep[index]
            for got, wanted in zip(found, self.targets[index], strict=True):
                error = got - wanted.to(self.device)
                if rows is not None and error.shape[:2] == rows.shape:
                    error = error[rows.to(self.device)]
                total = total + error.square().sum()
                count += error.numel()
        return total / max(count, 1)

    def mean_loss(self, batch_size: int) -> float:
        """Over all samples."""
        total, count = 0.0, len(self.inputs)
        with torch.no_grad():
            for start in range(0, count, batch_size):
                part = range(start, min(start + batch_size, count))
                total += float(self.loss(part)) * len(part)
        return total / max(count, 1)


def _train(
    data: BlockData,
    weights: Sequence[RoundedWeight],
    options: AutoRoundOptions,
    progress: Callable[[int, float], None] | None,
) -> int:
    """Leave the best parameters seen in the modules; returns the steps taken."""
    parts = options.gradient_accumulate_steps
    batches = data.batches(options.batch_size, options.iters * parts, options.seed)
    best, best_at, kept = float("inf"), 0, _copy(weights)
    step = -1
    for step in range(options.iters):
        total = 0.0
        for chosen in itertools.islice(batches, parts):
            loss = data.loss(chosen)
            (loss * 1000).backward()
            total += float(loss.detach())
        if progress is not None:
            progress(step, total)
        if total < best or options.not_use_best_mse:
            best, best_at, kept = total, step, _copy(weights)
        if 0 <= options.dynamic_max_gap <= step - best_at:
            break
        _sign_step(weights, options, 1 - step / options.iters)
    for weight, (shift, low, high) in zip(weights, kept, strict=True):
        with torch.no_grad():
            weight.shift.copy_(shift)
            weight.low.copy_(low)
            weight.high.copy_(high)
    return step + 1


def _sign_step(weights: Sequence[RoundedWeight], options: AutoRoundOptions, share: float) -> None:
    with torch.no_grad():
        for weight in weights:
            lr, minmax_lr = options.steps_of(weight.spec.bits or weight.spec.dtype.bitwidth)
            ranges = (weight.low, weight.high) if options.enable_minmax_tuning else ()
            for parameter, step in ((weight.shift, lr), *((item, minmax_lr) for item in ranges)):
                if parameter.grad is not None:
                    parameter -= share * step * parameter.grad.sign()
            weight.low.clamp_(0, 1)
            weight.high.clamp_(0, 1)
            for parameter in weight.parameters():
                parameter.grad = None


def _copy(weights: Sequence[RoundedWeight]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (w.shift.detach().clone(), w.low.detach().clone(), w.high.detach().clone()) for w in weights
    ]

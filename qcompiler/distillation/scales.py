"""Learn the scales of rounded weights on the outputs of the whole model, integers staying.

Rounding algorithms look at a layer or a block. What all of them together do to the outputs can
still be lessened by the scales alone (Chen et al. 2024, "EfficientQAT", arXiv 2407.11062, section
3.3, trains scales end to end on the next token). Here the float model teaches: what is learned on
is the divergence from what it foretells of each token (Hinton et al. 2015, arXiv 1503.02531), and
scales are so few, one for a group of weights, that they do not learn the data by heart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.distillation.scaled_integers import ScaledIntegers
from qcompiler.distillation.student import Student
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.memory import reused_memory
from qcompiler.stages.cut import Site
from qcompiler.stages.store import ArrayStore
from qcompiler.stages.walk import MEMORY

__all__ = ["DistillOptions", "Distilled", "distill_scales"]

_HELD_OUT = 8  # samples at most that are not learned on, an eighth of all
_JUDGED = 4  # times that the scales are judged by them on the way
_SAVED = 8  # steps after which what has been learned is kept
_WARM = 8  # steps in which the step grows
_NAME = "distill-scales"  # of the file in the store, and what it holds of each factor
_PARTS = ("factor", "best", "mean", "square")


@dataclasses.dataclass(frozen=True, slots=True)
class DistillOptions:
    """How long and how hard to learn.

    Attributes:
        steps: Steps of Adam.
        batch_size: Samples of one step.
        lr: Step of the logarithms of the scales at its largest, falling to 0 along a cosine.
        seed: Of the order in which samples are taken, and of which are held out.
    """

    steps: int = 64
    batch_size: int = 4
    lr: float = 2e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Distilled:
    """What was learned and what it bought.

    Attributes:
        tensors: Weights with new scales, by constant; empty where nothing could be learned, or
            where it did not help.
        before: Loss on the samples held out, under the scales that were given.
        after: The same under the best that were found.
        steps: Steps taken; fewer than asked for if the loss was no number any more.
        held_out: How many those are; 0 if there is one sample alone, which is learned and judged.
        unreached: Constants from which no gradient leads to the outputs, and the refusal (QC302)
            of an operator behind them, if that is why.
    """

    tensors: Mapping[ir.Value, QTensor]
    before: float
    after: float
    steps: int
    held_out: int
    unreached: Mapping[ir.Value, str]


def distill_scales(
    model: ir.Model,
    tensors: Mapping[ir.Value, QTensor],
    weights: Mapping[Site, QTensor],
    feeds: Iterable[Feed],
    *,
    options: DistillOptions = DistillOptions(),
    mask: str | None = None,
    memory: int = MEMORY,
    store: tuple[ArrayStore, str] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Distilled:
    """Learn the scales of weights by what the float model gives.

    The model runs block by block and what a block computes inside is computed again on the way
    back, so that one block's floats are in memory at a time. Integers are: a byte for each weight.

    Args:
        model: In float, nodes in topological order; left as it is.
        tensors: Rounded weights whose scales are learned, by the constant of the model.
        weights: All rounded weights by site; the others stay as they are.
        feeds: Samples, iterated once.
        options: See :class:`DistillOptions`.
        mask: Name of the input that is 0 on padding, as in ``calibration.mask``.
        memory: Bytes of values between blocks held in memory; what is more goes to files.
        store: Where to keep what has been learned on the way, and the key of all that determines
            it: a compile that was killed goes on from there.
        progress: Told the step, and the loss of its samples.

    Raises:
        QcError: QC201 no feed; QC607 the runtime cannot run a block; QC706 disk full.
    """
    with contextlib.closing(Student(memory)) as student:
        student.open(model, tensors, weights, feeds, mask)
        if not student.modules:
            return Distilled({}, 0.0, 0.0, 0, 0, student.unreached)
        with reused_memory():
            return _learn(student, options, store, progress)


def _learn(
    student: Student,
    options: DistillOptions,
    store: tuple[ArrayStore, str] | None,
    progress: Callable[[int, float], None] | None,
) -> Distilled:
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(student.count, generator=generator).tolist()
    held = min(_HELD_OUT, math.ceil(student.count / 8)) if student.count > 1 else 0
    judges, learned_on = (order[:held], order[held:]) if held else (order, order)
    student.allow_half_precision(judges[:1])
    training = _Training(student, options)
    began = training.load(*store) if store else 0
    if not began:
        training.judge(judges)
    batches = _batches(learned_on, options.batch_size, generator)
    taken = began
    for step in range(options.steps):
        chosen = next(batches)
        if step < began:
            continue
        loss = training.step(step, chosen)
        if not math.isfinite(loss):
            break
        taken = step + 1
        if progress is not None:
            progress(step, loss)
        if taken % math.ceil(options.steps / _JUDGED) == 0 or taken == options.steps:
            training.judge(judges)
        if store and (taken % _SAVED == 0 or taken == options.steps):
            training.save(*store, taken)
    tensors = {value: module.to_qtensor() for value, module in training.finish().items()}
    learned = tensors if training.best < training.first else {}
    still = dict.fromkeys(training.unmoved() if training.first else (), "")
    unreached = {**student.unreached, **still}
    learned = {value: tensor for value, tensor in learned.items() if value not in unreached}
    return Distilled(learned, training.first, training.best, taken, held, unreached)


def _batches(samples: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """All samples in random order, again and again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            mixed = torch.randperm(len(samples), generator=generator).tolist()
            order += [samples[index] for index in mixed]
        yield order[:size]
        order = order[size:]


class _Training:
    """The factors on their way.

    Attributes:
        first: Loss of the judging samples before anything was learned.
        best: Their smallest loss.
    """

    def __init__(self, student: Student, options: DistillOptions) -> None:
        self.first = self.best = math.inf
        self._student = student
        self._options = options
        self._factors = [module.log_factor for module in student.modules.values()]
        self._kept = [torch.zeros_like(factor) for factor in self._factors]
        self._adam = torch.optim.Adam(self._factors, lr=options.lr, betas=(0.9, 0.99))

    def step(self, step: int, chosen: Sequence[int]) -> float:
        """Go a step; returns the mean loss of its samples."""
        options = self._options
        warm = min(1.0, (step + 1) / min(_WARM, options.steps))
        fall = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in self._adam.param_groups:
            group["lr"] = options.lr * warm * fall
        loss = self._student.learn(chosen)
        self._adam.step()
        self._adam.zero_grad()
        return loss

    def judge(self, samples: Sequence[int]) -> None:
        """Keep the factors if they are the best so far."""
        loss = self._student.mean_loss(samples)
        if math.isinf(self.first):
            self.first = self.best = loss
        elif loss < self.best:
            self.best = loss
            self._kept = [factor.detach().clone() for factor in self._factors]

    def unmoved(self) -> list[ir.Value]:
        """Those that never had a gradient."""
        pairs = zip(self._student.modules, self._factors, strict=True)
        return [value for value, factor in pairs if not self._moments(factor)[1].any()]

    def finish(self) -> Mapping[ir.Value, ScaledIntegers]:
        """The modules with their best factors."""
        with torch.no_grad():
            for factor, best in zip(self._factors, self._kept, strict=True):
                factor.copy_(best)
        return self._student.modules

    def save(self, store: ArrayStore, key: str, step: int) -> None:
        """Keep all that the next step depends on."""
        arrays = {"progress": np.asarray([step, self.first, self.best], np.float64)}
        for index, (factor, kept) in enumerate(zip(self._factors, self._kept, strict=True)):
            parts = (factor.detach(), kept, *self._moments(factor))
            for word, part in zip(_PARTS, parts, strict=True):
                arrays[f"{word}.{index}"] = part.cpu().numpy()
        store.put(_NAME, key, arrays)

    def _moments(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Running means of its gradient and of the gradient's square."""
        state = self._adam.state.get(factor)
        if not state:
            return torch.zeros_like(factor.detach()), torch.zeros_like(factor.detach())
        return state["exp_avg"], state["exp_avg_sq"]

    def load(self, store: ArrayStore, key: str) -> int:
        """Take up what :meth:`save` kept; returns the steps taken, 0 if there is nothing."""
        if not store.has(_NAME, key):
            return 0
        arrays = store.get(_NAME, key)
        step, self.first, self.best = arrays["progress"].tolist()
        for index, factor in enumerate(self._factors):
            found = (torch.from_numpy(arrays[f"{word}.{index}"]) for word in _PARTS)
            now, kept, mean, square = (part.to(factor.device) for part in found)
            with torch.no_grad():
                factor.copy_(now)
            self._kept[index] = kept
            self._adam.state[factor] = {
                "step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square,
            }  # fmt: skip
        return int(step)

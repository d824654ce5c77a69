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
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from qcompiler.algorithms.half_precision import computes_bfloat16
from qcompiler.analysis.blocks import repeated_blocks
from qcompiler.calibration.padding import Padding
from qcompiler.distillation.losses import divergence, relative_error
from qcompiler.distillation.scaled_integers import ScaledIntegers
from qcompiler.lift import array_to_torch, lift, refusals
from qcompiler.lift.lifted import Lifted
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.sensitivity.gradients import is_logits
from qcompiler.stages.cut import Site, Stage
from qcompiler.stages.spans import finals, spans
from qcompiler.stages.spool import Spool
from qcompiler.stages.store import ArrayStore
from qcompiler.stages.walk import MEMORY, advance, store_inputs

__all__ = ["DistillOptions", "Distilled", "distill_scales"]

_HELD_OUT = 8  # samples at most that are not learned on, an eighth of all
_JUDGED = 4  # times that the scales are judged by them on the way
_SAVED = 8  # steps after which what has been learned is kept
_WARM = 8  # steps in which the step grows
_HIDDEN = 0.02  # of the loss: what bfloat16 may add to it
_NAME = "distill-scales"  # of the file in the store, and what it holds of each factor
_PARTS = ("factor", "best", "mean", "square")

_Values = dict[ir.Value, Any]


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
    with contextlib.closing(_School(memory)) as school:
        school.open(model, tensors, weights, feeds, mask)
        if not school.modules:
            return Distilled({}, 0.0, 0.0, 0, 0, school.unreached)
        return _learn(school, options, store, progress)


class _School:
    """The float model's outputs on all samples, and the rounded model as a torch module.

    Attributes:
        modules: What learns, by constant.
        unreached: See :class:`Distilled`.
        count: Samples.
        half_precision: Compute products in bfloat16.
    """

    def __init__(self, memory: int) -> None:
        """Empty; may hold so many bytes of values in memory, and the others in files."""
        self.modules: dict[ir.Value, ScaledIntegers] = {}
        self.unreached: dict[ir.Value, str] = {}
        self.count = 0
        self.half_precision = False
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._exact, self._start = Spool(memory // 2), Spool(memory // 2)
        self._parts: list[Lifted] = []

    def open(
        self,
        model: ir.Model,
        tensors: Mapping[ir.Value, QTensor],
        weights: Mapping[Site, QTensor],
        feeds: Iterable[Feed],
        mask: str | None,
    ) -> None:
        """Lift the rounded model, and run the float one; arguments as :func:`distill_scales`."""
        graph = model.graph
        refused = refusals(graph)
        stages = spans(graph, repeated_blocks(graph), front=refused)
        front = stages[: bool(refused)]  # runs in the runtime: no gradient leads into it
        self._stages = [stage for stage in stages[len(front) :] if stage.nodes]
        self._ends = _ends(self._stages)
        if self._ends:
            self._parts = [self._part(stage, tensors, weights) for stage in self._stages]
        self._visits = list(zip(self._stages, self._parts, strict=False))
        why = next((error.diagnostic.message for error in refused.values()), "")
        self.unreached = {value: why for value in tensors if value not in self.modules}
        if self.modules:
            self._run_float(model, front, feeds, mask, weights)
            last = self._stages[-1]
            ends = [value for value in finals(last) if value in self._ends]
            self._teacher = lift(last.nodes, inputs=last.inputs, outputs=ends)
            self._teacher.module.to(self._device)

    def _part(
        self,
        stage: Stage,
        tensors: Mapping[ir.Value, QTensor],
        weights: Mapping[Site, QTensor],
    ) -> Lifted:
        """A stage with integers for weights."""
        ends = [value for value in finals(stage) if value in self._ends]
        outputs = tuple(dict.fromkeys((*stage.outputs, *ends)))
        part = lift(stage.nodes, inputs=stage.inputs, outputs=outputs)
        for node in stage.nodes:
            value = node.inputs[1] if len(node.inputs) > 1 else None
            if value is None or node not in part.calls:
                continue
            if value in tensors:
                if value not in self.modules:
                    dtype = part.constant(value).dtype
                    self.modules[value] = ScaledIntegers(tensors[value], dtype)
                if part.values[value].op == "get_attr":  # not yet, for another reader
                    part.stand_in(value, self.modules[value])
            elif (node.name or "", 1) in weights:
                part.quantize_weight(value, weights[node.name or "", 1], readers=[node])
        part.module.to(self._device)
        return part

    def _run_float(
        self,
        model: ir.Model,
        front: Sequence[Stage],
        feeds: Iterable[Feed],
        mask: str | None,
        weights: Mapping[Site, QTensor],
    ) -> None:
        """Keep what both models start from, and what the end of the float model reads."""
        exact, start, stages = self._exact, self._start, [*front, *self._stages]
        padding = Padding.of(model, mask)
        self._keeps = store_inputs(feeds, model.graph, stages, padding, exact)
        self.count = len(self._keeps)
        for value in model.graph.inputs:
            if exact.has(value.name or ""):
                for sample in range(self.count):
                    start.put(value.name or "", sample, exact.get(value.name or "", sample))
        for stage in front:
            advance(model, stage, weights, start, self.count)
        for stage in stages[:-1]:
            ends = [value for value in finals(stage) if value in self._ends]
            outputs = tuple(dict.fromkeys((*stage.outputs, *ends)))
            advance(model, dataclasses.replace(stage, outputs=outputs), {}, exact, self.count)
            for value in stage.last:
                if value not in self._ends and value not in stages[-1].inputs:
                    exact.drop(value.name or "")

    def learn(self, samples: Sequence[int]) -> float:
        """Add the gradients of the samples' mean loss to those of the factors; returns the loss."""
        values: list[_Values] = [{} for _ in samples]
        slopes: list[dict[ir.Value, Tensor]] = [{} for _ in samples]
        for stage, part in self._visits[:-1]:
            with self._open(part), torch.no_grad():
                for sample, known in zip(samples, values, strict=True):
                    given = [self._value(value, sample, known) for value in stage.inputs]
                    known.update(zip(part.outputs, self._run(part, given), strict=True))
        total = 0.0
        for stage, part in reversed(self._visits):
            with self._open(part, learn=True):
                for sample, known, behind in zip(samples, values, slopes, strict=True):
                    total += self._go_back(stage, part, sample, known, behind, len(samples))
        return total

    def _go_back(
        self,
        stage: Stage,
        part: Lifted,
        sample: int,
        known: _Values,
        slopes: dict[ir.Value, Tensor],
        count: int,
    ) -> float:
        """Through one stage: it is run again, and handed the gradients of what it gave."""
        given = [self._value(value, sample, known) for value in stage.inputs]
        for value, item in zip(stage.inputs, given, strict=True):
            if value in known and isinstance(item, Tensor) and item.is_floating_point():
                item.requires_grad_()
        made = self._run(part, given)
        loss = self._loss(part, made, sample) / count
        ways = [(loss, torch.ones_like(loss))] if loss.requires_grad else []
        for value, item in zip(part.outputs, made, strict=True):
            slope = slopes.pop(value, None)
            if slope is not None and item.requires_grad:
                ways.append((item, slope))
            known.pop(value, None)
        if ways:
            torch.autograd.backward([item for item, _ in ways], [slope for _, slope in ways])
        for value, item in zip(stage.inputs, given, strict=True):
            if isinstance(item, Tensor) and item.grad is not None:
                slopes[value] = item.grad + slopes[value] if value in slopes else item.grad
        return float(loss.detach())

    def mean_loss(self, samples: Sequence[int]) -> float:
        """Over some samples; nothing is learned."""
        values: list[_Values] = [{} for _ in samples]
        total = 0.0
        for stage, part in self._visits:
            with self._open(part), torch.no_grad():
                for sample, known in zip(samples, values, strict=True):
                    given = [self._value(value, sample, known) for value in stage.inputs]
                    made = self._run(part, given)
                    total += float(self._loss(part, made, sample))
                    known.update(zip(part.outputs, made, strict=True))
                    for value in stage.last:
                        known.pop(value, None)
        return total / max(len(samples), 1)

    @contextlib.contextmanager
    def _open(self, part: Lifted, *, learn: bool = False) -> Iterator[None]:
        """Floats for the integers of a part."""
        modules = [item for item in part.module.modules() if isinstance(item, ScaledIntegers)]
        for module in modules:
            module.open(learn=learn)
        try:
            yield
        finally:
            for module in modules:
                module.close()

    def _run(self, part: Lifted, given: Sequence[Any]) -> tuple[Any, ...]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.half_precision):
            return part(*given)

    def _value(self, value: ir.Value, sample: int, known: _Values) -> Any:
        if value in known:
            return known[value].detach() if isinstance(known[value], Tensor) else known[value]
        return self._tensor(self._start, value, sample)

    def _loss(self, part: Lifted, made: Sequence[Any], sample: int) -> Tensor:
        """How far outputs of the model that a part gives are from the float model's."""
        total, last = torch.zeros((), device=self._device), self._stages[-1]
        found = [(v, x) for v, x in zip(part.outputs, made, strict=True) if v in self._ends]
        wanted: _Values = {}
        if found and part is self._parts[-1]:
            given = [self._tensor(self._exact, value, sample) for value in last.inputs]
            with torch.no_grad():
                wanted = dict(zip(self._teacher.outputs, self._teacher(*given), strict=True))
        for value, got in found:
            if not isinstance(got, Tensor) or not got.is_floating_point():
                continue
            want = wanted.get(value)
            want = self._tensor(self._exact, value, sample) if want is None else want
            got, want = self._data(got, sample), self._data(want, sample)
            measure = divergence if is_logits(value, got) else relative_error
            total = total + measure(got, want)
        return total

    def _data(self, x: Tensor, sample: int) -> Tensor:
        """Rows that are no padding."""
        keep = self._keeps[sample]
        if keep is None or x.shape[: keep.ndim] != keep.shape:
            return x
        return x[torch.from_numpy(keep).to(x.device)]

    def _tensor(self, spool: Spool, value: ir.Value, sample: int) -> Any:
        found = array_to_torch(spool.get(value.name or "", sample))
        return found.to(self._device) if isinstance(found, Tensor) else found

    def allow_half_precision(self, samples: Sequence[int]) -> None:
        """Compute in bfloat16 if that is faster here and changes the loss by next to nothing."""
        modules = self.modules.values()
        in_floats = all(module.dtype is torch.float32 for module in modules)
        if not in_floats or not computes_bfloat16(self._device):
            return
        exact = self.mean_loss(samples)
        self._compute_in(torch.bfloat16)
        if not abs(self.mean_loss(samples) - exact) <= _HIDDEN * exact:
            self._compute_in(torch.float32)

    def _compute_in(self, dtype: torch.dtype) -> None:
        self.half_precision = dtype is torch.bfloat16
        for module in self.modules.values():
            module.dtype = dtype

    def close(self) -> None:
        """Let go of everything."""
        for part in self._parts:
            part.release()
        self._exact.close()
        self._start.close()


def _ends(stages: Sequence[Stage]) -> tuple[ir.Value, ...]:
    """The outputs to learn on: logits where there are any, else all that are floats."""
    found = [value for stage in stages for value in finals(stage) if _may_be_float(value)]
    logits = [value for value in found if value.name == "logits"]
    return tuple(logits or found)


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _learn(
    school: _School,
    options: DistillOptions,
    store: tuple[ArrayStore, str] | None,
    progress: Callable[[int, float], None] | None,
) -> Distilled:
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(school.count, generator=generator).tolist()
    held = min(_HELD_OUT, math.ceil(school.count / 8)) if school.count > 1 else 0
    judges, pupils = (order[:held], order[held:]) if held else (order, order)
    school.allow_half_precision(judges[:1])
    pupil = _Pupil(school, options)
    began = pupil.load(*store) if store else 0
    if not began:
        pupil.judge(judges)
    batches = _batches(pupils, options.batch_size, generator)
    taken = began
    for step in range(options.steps):
        chosen = next(batches)
        if step < began:
            continue
        loss = pupil.step(step, chosen)
        if not math.isfinite(loss):
            break
        taken = step + 1
        if progress is not None:
            progress(step, loss)
        if taken % math.ceil(options.steps / _JUDGED) == 0 or taken == options.steps:
            pupil.judge(judges)
        if store and (taken % _SAVED == 0 or taken == options.steps):
            pupil.save(*store, taken)
    tensors = {value: module.to_qtensor() for value, module in pupil.finish().items()}
    learned = tensors if pupil.best < pupil.first else {}
    still = dict.fromkeys(pupil.unmoved() if pupil.first else (), "")
    unreached = {**school.unreached, **still}
    learned = {value: tensor for value, tensor in learned.items() if value not in unreached}
    return Distilled(learned, pupil.first, pupil.best, taken, held, unreached)


def _batches(samples: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """All samples in random order, again and again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            mixed = torch.randperm(len(samples), generator=generator).tolist()
            order += [samples[index] for index in mixed]
        yield order[:size]
        order = order[size:]


class _Pupil:
    """The factors on their way.

    Attributes:
        first: Loss of the judging samples before anything was learned.
        best: Their smallest loss.
    """

    def __init__(self, school: _School, options: DistillOptions) -> None:
        self.first = self.best = math.inf
        self._school = school
        self._options = options
        self._factors = [module.log_factor for module in school.modules.values()]
        self._kept = [torch.zeros_like(factor) for factor in self._factors]
        self._adam = torch.optim.Adam(self._factors, lr=options.lr, betas=(0.9, 0.99))

    def step(self, step: int, chosen: Sequence[int]) -> float:
        """Go a step; returns the mean loss of its samples."""
        options = self._options
        warm = min(1.0, (step + 1) / min(_WARM, options.steps))
        fall = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in self._adam.param_groups:
            group["lr"] = options.lr * warm * fall
        loss = self._school.learn(chosen)
        self._adam.step()
        self._adam.zero_grad()
        return loss

    def judge(self, samples: Sequence[int]) -> None:
        """Keep the factors if they are the best so far."""
        loss = self._school.mean_loss(samples)
        if math.isinf(self.first):
            self.first = self.best = loss
        elif loss < self.best:
            self.best = loss
            self._kept = [factor.detach().clone() for factor in self._factors]

    def unmoved(self) -> list[ir.Value]:
        """Those that never had a gradient."""
        pairs = zip(self._school.modules, self._factors, strict=True)
        return [value for value, factor in pairs if not self._moments(factor)[1].any()]

    def finish(self) -> Mapping[ir.Value, ScaledIntegers]:
        """The modules with their best factors."""
        with torch.no_grad():
            for factor, best in zip(self._factors, self._kept, strict=True):
                factor.copy_(best)
        return self._school.modules

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

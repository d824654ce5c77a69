"""The rounded model as a torch module, and what its teacher, the float model, gives."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from qcompiler.stages.walk import advance, store_inputs

__all__ = ["Student"]

_HIDDEN = 0.02  # of the loss: what bfloat16 may add to it

_Values = dict[ir.Value, Any]


class Student:
    """The float model's outputs on all samples, and the rounded model as a torch module.

    Attributes:
        modules: What learns, by constant.
        unreached: See :class:`~qcompiler.distillation.scales.Distilled`.
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
        """Lift the rounded model, and run the float one.

        Arguments as :func:`~qcompiler.distillation.scales.distill_scales` has them.
        """
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

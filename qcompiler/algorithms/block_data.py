"""What a block is trained on: its samples, in batches, and how far it is from what is wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.algorithms.half_precision import computes_bfloat16
from qcompiler.lift.lifted import Lifted

__all__ = ["BlockData", "Errors", "Sample"]

Sample = Sequence[Tensor]  # the block's inputs, or its outputs, on one feed

_SAME = 1e-4  # of the largest output: what sums in another order may differ by
_HIDDEN = 0.05  # of the error: what bfloat16 may add to what is to be learned
_TRIED = 2  # samples on which it is seen what may be done


@dataclasses.dataclass(frozen=True, slots=True)
class Errors:
    """Squared errors.

    Attributes:
        sums: Of each sample, float32.
        counts: Elements that they are sums of.
    """

    sums: Tensor
    counts: tuple[int, ...]

    def mean(self) -> Tensor:
        """Mean squared error of all samples."""
        return self.sums.sum() / max(sum(self.counts), 1)


@dataclasses.dataclass
class BlockData:
    """A block and its samples; on a GPU where there is one.

    Samples of one shape run together where a trial shows that this changes nothing. With
    ``half_precision`` products are computed in bfloat16; targets and errors are float32.

    Attributes:
        block: The block, with whatever is put into it.
        inputs: For each sample what it gets.
        targets: For each sample what it should give.
        keep: For each sample which rows ``[batch, sequence]`` are data, None being all.
    """

    block: Lifted
    inputs: Sequence[Sample]
    targets: Sequence[Sample]
    keep: Sequence[Tensor | None] | None = None
    half_precision: bool = False

    def __post_init__(self) -> None:
        """Move the block; find out whether samples may run together."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.block.module.to(self.device)
        self._shared: frozenset[int] | None = None  # inputs that all samples have in common
        first = list(range(min(_TRIED, len(self.inputs))))
        if len(first) < _TRIED or _shapes(self.inputs[0]) != _shapes(self.inputs[1]):
            return
        with torch.no_grad():
            given = [self.inputs[index] for index in first]
            alone = [self._run([sample], frozenset()) for sample in given]
            for shared in dict.fromkeys((self._in_common(scalars=True), self._in_common())):
                if self._agrees(given, shared, alone):
                    self._shared = shared
                    return

    def allow_half_precision(self) -> bool:
        """Compute in bfloat16 if the processor does and it hides nothing; whether it is so now."""
        first = range(min(_TRIED, len(self.inputs)))
        if not computes_bfloat16(self.device) or not first or self._has_float16():
            return False
        with torch.no_grad():
            exact = float(self.errors(first).mean())
            self.half_precision = True
            rough = float(self.errors(first).mean())
        self.half_precision = abs(rough - exact) <= _HIDDEN * exact
        return self.half_precision

    def _has_float16(self) -> bool:
        """Whether the block computes in float16, which does not mix with bfloat16."""
        module = self.block.module
        tensors = (*module.parameters(), *module.buffers(), *self.inputs[0])
        return any(tensor.dtype is torch.float16 for tensor in tensors)

    def batches(self, size: int, count: int, seed: int) -> Iterator[list[int]]:
        """Which samples each of ``count`` steps takes: all in random order, again and again."""
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for _ in range(count):
            while len(order) < size:
                order += torch.randperm(len(self.inputs), generator=generator).tolist()
            yield order[:size]
            order = order[size:]

    def errors(self, chosen: Sequence[int]) -> Errors:
        """Squared errors of some samples, padding left out."""
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        for part in self._parts(chosen):
            for index, (total, count) in zip(part, self._errors_of(part), strict=True):
                sums[index], counts[index] = total, count
        return Errors(torch.stack([sums[i] for i in chosen]), tuple(counts[i] for i in chosen))

    def all_errors(self, batch_size: int) -> Errors:
        """Of all samples; no gradients."""
        with torch.no_grad():
            found = [
                self.errors(range(start, min(start + batch_size, len(self.inputs))))
                for start in range(0, len(self.inputs), batch_size)
            ]
        if not found:
            return Errors(torch.zeros(0), ())
        sums = torch.cat([part.sums for part in found])
        return Errors(sums, tuple(n for part in found for n in part.counts))

    def _parts(self, chosen: Sequence[int]) -> list[dict[int, Sample]]:
        """The samples that run together; one that was chosen twice runs once."""
        given = {index: self.inputs[index] for index in dict.fromkeys(chosen)}
        if self._shared is None:
            return [{index: sample} for index, sample in given.items()]
        alike: dict[object, dict[int, Sample]] = {}
        for index, sample in given.items():
            alike.setdefault(_shapes(sample), {})[index] = sample
        return list(alike.values())

    def _errors_of(self, part: Mapping[int, Sample]) -> list[tuple[Tensor, int]]:
        found = self._run(list(part.values()), self._shared or frozenset())
        targets = [self.targets[index] for index in part]
        sums, counts = [torch.zeros((), device=self.device)] * len(part), [0] * len(part)
        for position, got in enumerate(found):
            wanted = _joined([target[position] for target in targets]).to(self.device)
            squares = (got.float() - wanted).square()
            rows = self._rows(part)
            kept = None
            if rows is not None and squares.shape[:2] == rows.shape and not rows.all():
                kept = rows.to(self.device)
                elements = kept.reshape(*kept.shape, *[1] * (squares.ndim - 2))
                squares = torch.where(elements, squares, 0.0)
            if len(part) == 1:
                sums[0] = sums[0] + squares.sum()
                counts[0] += _count(squares.numel(), kept)
                continue
            sizes = [len(target[position]) for target in targets]
            totals = squares.flatten(1).sum(1) if squares.ndim > 1 else squares
            shown = [None] * len(part) if kept is None else kept.split(sizes)
            for index, total in enumerate(totals.split(sizes)):
                sums[index] = sums[index] + total.sum()
                counts[index] += _count(sizes[index] * squares[0].numel(), shown[index])
        return list(zip(sums, counts, strict=True))

    def _rows(self, part: Collection[int]) -> Tensor | None:
        if self.keep is None:
            return None
        rows = [row for index in part if (row := self.keep[index]) is not None]
        return torch.cat(rows) if len(rows) == len(part) else None

    def _run(self, part: Sequence[Sample], shared: frozenset[int]) -> tuple[Tensor, ...]:
        given = [
            (column[0] if position in shared else _joined(column)).to(self.device)
            for position, column in enumerate(zip(*part, strict=True))
        ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            return self.block(*given)

    def _in_common(self, *, scalars: bool = False) -> frozenset[int]:
        """Inputs that are equal in the first samples; or of those the ones without a batch."""
        pairs = enumerate(zip(self.inputs[0], self.inputs[1], strict=True))
        return frozenset(
            position
            for position, (one, other) in pairs
            if (not one.ndim or not scalars) and torch.equal(one, other)
        )

    def _agrees(
        self,
        part: Sequence[Sample],
        shared: frozenset[int],
        alone: Sequence[tuple[Tensor, ...]],
    ) -> bool:
        """Whether samples that run together give what they give alone."""
        try:
            together = self._run(part, shared)
        except (RuntimeError, IndexError, ValueError):  # shapes that do not go together
            return False
        for position, found in enumerate(together):
            pieces = [given[position] for given in alone]
            if not all(piece.ndim for piece in pieces):
                return False
            wanted = torch.cat(pieces)
            if found.shape != wanted.shape:
                return False
            bound = _SAME * float(wanted.abs().max()) if wanted.numel() else 0.0
            if not torch.allclose(found, wanted, rtol=0.0, atol=bound):
                return False
        return True


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _shapes(sample: Sample) -> tuple[torch.Size, ...]:
    return tuple(item.shape for item in sample)


def _count(count: int, kept: Tensor | None) -> int:
    return count if kept is None else int(kept.sum()) * (count // max(kept.numel(), 1))

"""A weight whose rounding and ranges are learned, by gradients written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import Granularity, QSpec

__all__ = ["RoundedWeight", "extrema", "in_groups", "round_in_groups", "scale_and_zero"]

_ELEMENTS = 1 << 17  # of a weight at a time: what a cache holds, and bounds what comes in between


class RoundedWeight(nn.Module):  # type: ignore[misc]
    """``s (clamp(round(w / s + V) + z) - z)``, with ``V`` and the ranges behind ``s, z`` learned.

    The block reads ``value``, the result, as if it were a weight of its own; nothing between it
    and what is learned is on autograd's tape. :meth:`descend` takes the gradient of ``value``, by
    which the rest follows with rounding passed straight through (Bengio et al. 2013)::

        dL/dV = s g        inside of the integers' range, else 0
        dL/ds = sum of g (q - z), and of -g w / s inside, over a group
        dL/dz = sum of -s g outside, over a group

    All of it runs over pieces, so that a large weight takes no more memory than a small one.

    Attributes:
        value: What the integers stand for, by group ``[..., group_size]``.
        shift: ``V``, ``[groups, group_size]``, in steps.
        low: Share of each group's minimum that is kept, ``[groups, 1]`` in [0, 1].
        high: Share of its maximum.
    """

    def __init__(self, weight: Tensor, spec: QSpec) -> None:
        """Start at rounding to nearest of the full range."""
        super().__init__()
        if spec.is_float8 or spec.granularity not in (Granularity.BLOCK, Granularity.CHANNEL):
            raise ValueError(f"integers in groups or by channel can be learned, not {spec}")
        self.spec = spec
        grouped, self._back = in_groups(weight.detach().float(), spec)
        self.value = nn.Parameter(torch.empty_like(grouped, dtype=weight.dtype))
        groups = grouped.reshape(-1, grouped.shape[-1])
        self.register_buffer("groups", groups)
        lo, hi = extrema(groups)
        self.register_buffer("lo", lo)
        self.register_buffer("hi", hi)
        self.register_buffer("shift", torch.zeros_like(groups))
        self.register_buffer("low", torch.ones_like(lo))
        self.register_buffer("high", torch.ones_like(hi))
        self._kept: tuple[Tensor, ...] = ()
        self.refresh()

    def forward(self, _: Tensor) -> Tensor:
        """The values that the integers stand for, in the weight's shape."""
        return self._back(self.value)

    def store_as(self, dtype: torch.dtype) -> None:
        """Type of ``value``; what is learned stays float32."""
        self.value = nn.Parameter(self.value.detach().to(dtype))
        self.refresh()

    def refresh(self) -> None:
        """Make ``value`` of what has been learned."""
        with torch.no_grad():
            scale, zero = self._scale_and_zero(self.low, self.high)
            inverse = scale.reciprocal()
            value = self.value.view(self.groups.shape)
            for part in self._parts():
                steps = _in_range(self._steps(part, inverse), zero[part], self.spec)
                torch.mul(steps, scale[part], out=value[part])

    def descend(self, step: float, range_step: float) -> None:
        """Go against the sign of the gradient.

        Args:
            step: Of the rounding.
            range_step: Of the ranges; 0 leaves them.
        """
        if self.value.grad is None:
            return
        grad = self.value.grad.reshape(self.groups.shape)
        low, high = self.low.requires_grad_(), self.high.requires_grad_()
        scale, zero = self._scale_and_zero(low, high)
        with torch.no_grad():
            by_scale, by_zero = torch.zeros_like(scale), torch.zeros_like(scale)
            inverse, signed = scale.reciprocal(), scale.sign() * -step
            for part in self._parts():
                inside, by_scale[part], by_zero[part] = _slopes(
                    grad[part].float(),
                    self.groups[part],
                    self._steps(part, inverse),
                    scale[part],
                    zero[part],
                    self.spec,
                )
                self.shift[part].add_(inside.sign_().mul_(signed[part]))
        if range_step:
            found = [(scale, by_scale), (zero, by_zero)]
            given = [(x, g) for x, g in found if x.requires_grad]
            slopes = torch.autograd.grad(
                [x for x, _ in given], [low, high], [g for _, g in given], allow_unused=True
            )
            for shares, slope in zip((low, high), slopes, strict=True):
                if slope is not None:
                    shares.detach().sub_(slope.sign(), alpha=range_step).clamp_(0, 1)
        low.requires_grad_(False)
        high.requires_grad_(False)
        self.value.grad = None
        self.refresh()

    def keep(self) -> None:
        """Remember what has been learned."""
        now = (self.shift, self.low, self.high)
        if not self._kept:
            self._kept = tuple(item.clone() for item in now)
        for was, item in zip(self._kept, now, strict=True):
            was.copy_(item)

    def restore(self) -> None:
        """Go back to what :meth:`keep` remembered, and forget it."""
        for item, was in zip((self.shift, self.low, self.high), self._kept, strict=True):
            item.copy_(was)
        self._kept = ()
        self.refresh()

    def to_qtensor(self) -> QTensor:
        """The integers with their scales."""
        with torch.no_grad():
            scale, zero = self._scale_and_zero(self.low, self.high)
            inverse = scale.reciprocal()
            parts = [
                _in_range(self._steps(part, inverse), zero[part], self.spec).add_(zero[part])
                for part in self._parts()
            ]
            spread = self._back(torch.cat(parts).view(self.value.shape)).cpu()
        element = np.int8 if self.spec.is_signed else np.uint8
        zeros = self._params(zero, spread.ndim).astype(np.int32)
        return QTensor(
            spread.numpy().astype(element),
            self._params(scale, spread.ndim),
            None if self.spec.is_signed and not zeros.any() else zeros,
            self.spec,
        )

    def _scale_and_zero(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return scale_and_zero(self.lo * low, self.hi * high, self.spec)

    def _steps(self, part: slice, inverse: Tensor) -> Tensor:
        """Integers less the zero point, before they are brought into range."""
        steps = torch.mul(self.groups[part], inverse[part])
        return steps.add_(self.shift[part]).round_()

    def _parts(self) -> Iterator[slice]:
        rows, size = self.groups.shape
        at_once = rows if self.groups.is_cuda else max(1, _ELEMENTS // max(size, 1))
        return (slice(start, start + at_once) for start in range(0, rows, max(at_once, 1)))

    def _params(self, params: Tensor, rank: int) -> npt.NDArray[np.float32]:
        """Parameters ``[groups, 1]`` as a QTensor has them."""
        spec = self.spec
        assert spec.axis is not None
        flat = params.cpu().view(self.value.shape[:-1])
        if spec.granularity is Granularity.CHANNEL:
            shape = [1] * rank
            shape[spec.axis] = -1
            return np.asarray(flat.reshape(shape).numpy(), np.float32)
        return np.ascontiguousarray(flat.movedim(-1, spec.axis).numpy(), np.float32)


def extrema(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest element of each group, and 0."""
    return groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)


def scale_and_zero(lo: Tensor, hi: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """Scales and zero points of ranges, which gradients pass.

    Args:
        lo: ``[..., 1]``, at most 0.
        hi: ``[..., 1]``, at least 0.
        spec: Integers.
    """
    if spec.symmetric:
        # the element of largest magnitude gets the number that the other side lacks
        reach = torch.where(hi > -lo, hi, lo)
        below = spec.middle - spec.qmin
        scale = torch.where(reach == 0, torch.ones_like(reach), -reach / below)
        if below <= spec.qmax - spec.middle:  # no such number: signed types that leave it out
            scale = scale.abs()
        return scale, torch.full_like(scale, spec.middle, requires_grad=False)
    scale = (hi - lo) / (spec.qmax - spec.qmin)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, _straight((spec.qmin - lo / scale).clamp(spec.qmin, spec.qmax))


def round_in_groups(groups: Tensor, lo: Tensor, hi: Tensor, spec: QSpec) -> Tensor:
    """What the integers nearest to a weight stand for; gradients pass straight through rounding.

    Args:
        groups: ``[..., group_size]``.
        lo: ``[..., 1]``, at most 0.
        hi: ``[..., 1]``, at least 0.
        spec: Integers.
    """
    values: Tensor = _Round.apply(groups, *scale_and_zero(lo, hi, spec), spec)
    return values


class _Round(torch.autograd.Function):  # type: ignore[misc]
    """Rounding as one step on the tape: what comes in between is computed again, not stored."""

    @staticmethod
    def forward(ctx: Any, groups: Tensor, scale: Tensor, zero: Tensor, spec: QSpec) -> Tensor:
        ctx.spec = spec
        ctx.save_for_backward(groups, scale, zero)
        steps = (groups * scale.reciprocal()).round_()
        return _in_range(steps, zero, spec).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        groups, scale, zero = ctx.saved_tensors
        steps = (groups * scale.reciprocal()).round_()
        return (*_slopes(grad, groups, steps, scale, zero, ctx.spec), None)


def _in_range(steps: Tensor, zero: Tensor, spec: QSpec) -> Tensor:
    """Clamp ``q - z``; where all zero points are one number, in a single sweep."""
    if spec.symmetric:
        return steps.clamp(spec.qmin - spec.middle, spec.qmax - spec.middle)
    return (steps + zero).clamp_(spec.qmin, spec.qmax).sub_(zero)


def _slopes(
    g: Tensor, groups: Tensor, steps: Tensor, scale: Tensor, zero: Tensor, spec: QSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of groups, scales and zero points, as :class:`RoundedWeight` says.

    Args:
        g: Gradient of the result, ``[..., group_size]``.
        groups: What was rounded.
        steps: ``q - z`` before it was brought into range; overwritten.
        scale: ``[..., 1]``.
        zero: ``[..., 1]``.
        spec: The range.
    """
    within = _in_range(steps, zero, spec)
    inside = steps.eq_(within).mul_(g)
    by_scale = within.mul_(g).sum(-1, keepdim=True)
    by_scale -= torch.mul(groups, inside, out=within).sum(-1, keepdim=True) / scale
    if spec.symmetric:  # the zero point is a constant
        return inside, by_scale, torch.zeros_like(by_scale)
    by_zero = torch.sub(inside, g, out=within).sum(-1, keepdim=True) * scale
    return inside, by_scale, by_zero


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


def _straight(x: Tensor) -> Tensor:
    """Round; the gradient passes as if nothing had been rounded (Bengio et al. 2013)."""
    return x + (x.round() - x).detach()

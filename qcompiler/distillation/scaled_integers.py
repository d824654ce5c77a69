"""A rounded weight whose scales are learned and whose integers stay."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qcompiler.numerics.codebooks import CODEBOOKS
from qcompiler.numerics.qtensor import QTensor

__all__ = ["ScaledIntegers"]


class ScaledIntegers(nn.Module):  # type: ignore[misc]
    """``(q - zero_point) * scale * exp(log_factor)``, one factor for each scale.

    The logarithm makes a step the same share of every scale, and no scale changes its sign. The
    floats exist between :meth:`open` and :meth:`close`: those of a whole model would not fit.

    Attributes:
        log_factor: What is learned, shape of the tensor's ``scale``; 0 at the start.
        dtype: Of the floats.
    """

    def __init__(self, tensor: QTensor, dtype: torch.dtype = torch.float32) -> None:
        """Take a rounded weight; its elements are kept in a byte each where they fit."""
        super().__init__()
        self._tensor = tensor
        self.dtype = dtype
        self.log_factor = nn.Parameter(torch.zeros(tensor.scale.shape))
        steps, zero = torch.from_numpy(np.ascontiguousarray(tensor.q)), tensor.zero_point
        if zero is not None:
            spread = self._spread(torch.from_numpy(np.asarray(zero, np.float32)), steps.shape)
            exact = steps.float() - spread
            kept = exact.to(torch.int8)
            steps = kept if torch.equal(kept.float(), exact) else exact
        book = tensor.spec.codebook
        entries = torch.from_numpy(np.asarray(CODEBOOKS[book], np.float32)) if book else None
        self.register_buffer("steps", steps)
        self.register_buffer("entries", entries)
        self.register_buffer("scale", torch.from_numpy(tensor.scale))
        self._floats: Tensor | None = None

    def open(self, *, learn: bool) -> None:
        """Make the floats, shape of the weight; with ``learn`` their gradient is wanted."""
        scale = (self.scale * self.log_factor.exp()).detach()
        steps = self.steps if self.entries is None else self.entries[self.steps.int()]
        floats = self._by_group(steps) * self._beside(scale)
        self._floats = self._whole(floats).to(self.dtype).requires_grad_(learn)

    def close(self) -> None:
        """Let go of the floats; what their gradient says of the factors is added to theirs."""
        floats, self._floats = self._floats, None
        if floats is None or floats.grad is None:
            return
        # dL/dlog f = sum of dL/dw w over what f scales
        product = self._by_group(floats.grad.float() * floats.detach().float())
        others = [i for i, n in enumerate(self._beside(self.scale).shape) if n == 1]
        slope = product.sum(others).reshape(self.scale.shape) if others else product
        before = self.log_factor.grad
        self.log_factor.grad = slope if before is None else before + slope

    def forward(self) -> Tensor:
        """The floats that the integers stand for."""
        assert self._floats is not None, "open() first"
        return self._floats

    def to_qtensor(self) -> QTensor:
        """The same integers under the scales that were learned."""
        scale = (self.scale * self.log_factor.detach().exp()).cpu().numpy()
        return dataclasses.replace(self._tensor, scale=scale)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return str(self._tensor.spec)

    @property
    def _group(self) -> tuple[int, int] | None:
        """Axis and size of groups."""
        spec = self._tensor.spec
        if spec.axis is None or spec.group_size is None:
            return None
        return spec.axis % self._tensor.q.ndim, spec.group_size

    def _by_group(self, x: Tensor) -> Tensor:
        """Groups on an axis of their own, behind which their elements stand; padded with 0."""
        if self._group is None:
            return x
        axis, size = self._group
        if missing := -x.shape[axis] % size:
            x = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, missing])
        return x.unflatten(axis, (-1, size))

    def _whole(self, grouped: Tensor) -> Tensor:
        """The inverse."""
        if self._group is None:
            return grouped
        axis, _ = self._group
        whole = grouped.flatten(axis, axis + 1)
        return whole.narrow(axis, 0, self._tensor.q.shape[axis])

    def _beside(self, params: Tensor) -> Tensor:
        """Parameters that broadcast against groups."""
        return params if self._group is None else params.unsqueeze(self._group[0] + 1)

    def _spread(self, params: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Parameters repeated over their groups."""
        return self._whole((self._by_group(torch.ones(shape))) * self._beside(params))

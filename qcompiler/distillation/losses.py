"""How far outputs are from those of the float model, as something that can be learned on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["divergence", "relative_error"]

_ELEMENTS = 1 << 22  # of the logits at a time: several copies of all of them would fill the memory


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence from what ``wanted`` foretells, in nats per row.

    Args:
        logits: ``[..., vocabulary]``.
        wanted: The float model's, same shape; holds the gradient afterwards.
    """
    loss: Tensor = _Divergence.apply(logits.flatten(0, -2), wanted.flatten(0, -2))
    return loss


def relative_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Squared error as a share of the square of what is wanted."""
    error = (output.float() - wanted.float()).square().sum()
    return error / wanted.float().square().sum().clamp(min=1e-24)


class _Divergence(torch.autograd.Function):  # type: ignore[misc]
    """``sum(p (log p - log q)) / rows``; its gradient by the logits is ``(q - p) / rows``.

    Both come from one walk over the rows, and the gradient takes the place of ``wanted``.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        at_once = max(1, _ELEMENTS // logits.shape[-1])
        for start in range(0, len(logits), at_once):
            part = slice(start, start + at_once)
            log_p = wanted[part].float().log_softmax(-1)
            log_q = logits[part].float().log_softmax(-1)
            p = log_p.exp()
            total += log_p.sub_(log_q).mul_(p).sum(dtype=torch.float64)
            wanted[part] = log_q.exp_().sub_(p)
        ctx.slope = wanted.div_(max(len(logits), 1))
        return (total / max(len(logits), 1)).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.slope.mul_(grad), None

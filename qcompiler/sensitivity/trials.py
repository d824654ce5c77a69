"""How far a model's outputs really move when its weights are rounded in one way or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from qcompiler.lift import array_to_torch, lift
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.sensitivity.gradients import is_logits

__all__ = ["divergences"]


class _Slot(nn.Module):  # type: ignore[misc]
    """Stands between a weight and its readers, who see what is put into it."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded: QTensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.rounded is None else torch.from_numpy(self.rounded.dequantize()).to(x)


def divergences(
    graph: ir.Graph, feeds: Sequence[Feed], trials: Sequence[Mapping[ir.Value, QTensor]]
) -> list[float]:
    """Distance of the outputs from the float graph's, for each trial; by forward passes alone.

    Args:
        graph: The float graph.
        feeds: Some samples.
        trials: Rounded weights in place of constants ``[K, N]``; what one leaves out stays float.

    Returns:
        What :func:`~qcompiler.sensitivity.gradients.weight_damages` foretells of small errors: of
        logits twice the divergence (Kullback-Leibler, nats) of all tokens, of another output the
        squared error as a share of its square; their sum, and its mean over the feeds.

    Raises:
        QcError: QC302, an operator has no differentiable form.
    """
    lifted = lift(graph)
    rounded = dict.fromkeys(value for trial in trials for value in trial)
    slots = {value: _Slot() for value in rounded if value in lifted.values}
    for value, slot in slots.items():
        lifted.put_behind(value, slot)
    totals = [0.0] * len(trials)
    with torch.no_grad():
        for feed in feeds:
            given = [array_to_torch(feed[value.name or ""]) for value in lifted.inputs]
            for slot in slots.values():
                slot.rounded = None
            wanted = lifted(*given)
            for index, trial in enumerate(trials):
                for value, slot in slots.items():
                    slot.rounded = trial.get(value)
                found = zip(lifted.outputs, wanted, lifted(*given), strict=True)
                totals[index] += sum(_distance(*item) for item in found)
    return [total / max(len(feeds), 1) for total in totals]


def _distance(value: ir.Value, wanted: Tensor, found: Tensor) -> float:
    if not isinstance(wanted, Tensor) or not wanted.is_floating_point():  # text passes as it is
        return 0.0
    if is_logits(value, wanted):
        shares, moved = wanted.log_softmax(-1), found.log_softmax(-1)
        return 2.0 * float((shares.exp() * (shares - moved)).sum())
    return float((found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-24))

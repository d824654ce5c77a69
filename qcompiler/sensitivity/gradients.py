"""What rounding a weight does to the model's outputs, to first order, for all layers at once.

A layer's error ``e_t`` at row ``t`` changes a loss by ``g_t . e_t``, ``g`` being the gradient of
the loss by the layer's output. For a loss that is drawn from the model itself the mean of the
squares is the divergence that the error makes (Fisher information: Martens 2020, arXiv 1412.1193,
section 5; for rounding: Li et al. 2021, arXiv 2102.05426, section 3.2). One backward pass gives
``g`` for every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from qcompiler.lift import array_to_torch, lift
from qcompiler.pipeline.contract import Feed

__all__ = ["is_logits", "weight_damages"]

_ROWS = 256  # of a sample that errors are computed for, of all that gradients came from
_VOCABULARY = 64  # entries at least of what is taken for logits of tokens


class _Tap(nn.Module):  # type: ignore[misc]
    """Remembers what flows by, and from there on gradients are wanted."""

    def __init__(self, wants_gradient: bool) -> None:
        super().__init__()
        self.wants_gradient = wants_gradient
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.wants_gradient:
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            x.retain_grad()
        self.seen = x
        return x


def weight_damages(
    graph: ir.Graph,
    layers: Sequence[ir.Node],
    feeds: Iterable[Feed],
    options: Sequence[int],
    error: Callable[[ir.Node, int], npt.NDArray[np.float32]],
    *,
    seed: int = 0,
) -> dict[str, dict[int, float]]:
    """Damage of each option for each layer, alone; only their ratios mean something.

    Args:
        graph: The float graph.
        layers: MatMul nodes with constant weights ``[K, N]``.
        feeds: A few samples; each costs a forward and a backward pass and a product per option.
        options: Keys for ``error``, as numbers of bits.
        error: Rounded less float weight of a layer under an option, ``[K, N]``.
        seed: Of what the loss draws.

    Returns:
        By node name and option: mean over the samples of ``sum_t (g_t . e_t)^2``.

    Raises:
        QcError: QC302, an operator has no differentiable form.
    """
    lifted = lift(graph)
    reads: dict[ir.Value, _Tap] = {}
    gives: dict[ir.Node, _Tap] = {}
    for node in layers:
        value = node.inputs[0]
        assert value is not None
        if node not in lifted.calls:  # the outputs do not depend on it
            continue
        if value not in reads:
            reads[value] = _Tap(False)
            lifted.put_behind(value, reads[value])
        gives[node] = _Tap(True)
        lifted.put_behind(node.outputs[0], gives[node])
    generator = torch.Generator().manual_seed(seed)
    totals = {str(node.name): dict.fromkeys(options, 0.0) for node in layers}
    count = 0
    for feed in feeds:
        count += 1
        arrays = [array_to_torch(feed[value.name or ""]) for value in lifted.inputs]
        loss = torch.zeros(())
        for value, output in zip(lifted.outputs, lifted(*arrays), strict=True):
            if isinstance(output, Tensor) and output.requires_grad:  # text passes as it is
                loss = loss + _loss(value, output, generator)
        loss.backward()
        for node, tap in gives.items():
            value = node.inputs[0]
            assert value is not None
            x, y = reads[value].seen, tap.seen
            assert x is not None
            assert y is not None
            g = y.grad
            if g is None:  # reaches outputs of integers only
                continue
            x, g, share = _some_rows(x.detach().float(), g.float(), generator)
            for option in options:
                e = x @ torch.from_numpy(error(node, option))
                squares = float((e * g).sum(-1).square().sum())
                totals[str(node.name)][option] += squares / share
            tap.seen = None
    return {
        name: {option: total / max(count, 1) for option, total in found.items()}
        for name, found in totals.items()
    }


def _some_rows(x: Tensor, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Rows of what a layer reads and of its output's gradient, and their share of all rows."""
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if len(x) <= _ROWS:
        return x, g, 1.0
    chosen = torch.randperm(len(x), generator=generator)[:_ROWS]
    return x[chosen], g[chosen], _ROWS / len(x)


def is_logits(value: ir.Value, output: Tensor) -> bool:
    """Whether an output is one of logits of tokens, ``[..., vocabulary]``."""
    return value.name == "logits" and output.shape[-1] >= _VOCABULARY


def _loss(value: ir.Value, output: Tensor, generator: torch.Generator) -> Tensor:
    """Its gradients' squares, on average, measure how far the output moves.

    For logits the likelihood of classes drawn from them, else random signs on an output of
    length 1.
    """
    if is_logits(value, output):
        flat = output.reshape(-1, output.shape[-1])
        drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)
        return nn.functional.cross_entropy(flat, drawn[:, 0], reduction="sum")
    signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
    return (output * signs).sum() / output.detach().norm().clamp(min=1e-12)

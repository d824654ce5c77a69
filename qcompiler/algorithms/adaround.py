"""AdaRound: learn for each weight of a layer whether it is rounded down or up.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv
2004.10568). Scales stay fixed. A soft weight that lies between the two neighbours on the grid is
trained by Adam to make the layer's output on *quantized* inputs equal the float output, while a
regularizer with growing sharpness pushes every weight to one of the neighbours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qcompiler.lift.quantizers import LearnedRounding
from qcompiler.numerics.affine import Array
from qcompiler.numerics.qtensor import QTensor

__all__ = ["AdaRoundOptions", "AdaRoundResult", "adaround"]

Layer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(inputs [batch, ...], weight) -> outputs [batch, ...]``, with what follows the layer."""


@dataclasses.dataclass(frozen=True, slots=True)
class AdaRoundOptions:
    """How long and how hard to train. Defaults of the paper unless a reason is given.

    Attributes:
        iterations: Adam steps. The paper takes 10,000 small ones. 250 of these bring the agreement
            of EfficientNet-Lite0 with 8-bit weights per tensor from 0.57 to 0.95.
        batch: Samples per step.
        learning_rate: Of Adam.
        strength: Weight of the regularizer (lambda).
        beta: Sharpness of the regularizer at its start and at its end; cosine between.
        warm_start: Share of the steps without the regularizer.
        held_out: Share of the samples, the last, that is not trained on and judges the result: a
            layer with more weights than rows learns its samples by heart.
        seed: Of the order in which samples are taken.
    """

    iterations: int = 500
    batch: int = 32
    learning_rate: float = 3e-2
    strength: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2
    held_out: float = 0.125
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class AdaRoundResult:
    """What was learned and what it bought.

    Attributes:
        tensor: The learned integers, or the given ones where learning did not help.
        mse_before: Mean squared error of the layer's output with the given integers, on samples
            held out of training.
        mse_after: The same with ``tensor``.
        flipped: Weights whose integer differs from the given one.
        improved: Whether learning helped; else ``tensor`` is what was given.
        seconds: Time taken.
    """

    tensor: QTensor
    mse_before: float
    mse_after: float
    flipped: int
    improved: bool
    seconds: float


def adaround(
    layer: Layer,
    weight: Array,
    start: QTensor,
    inputs: Array,
    targets: Array,
    *,
    options: AdaRoundOptions = AdaRoundOptions(),
    channel_axis: int = 1,
) -> AdaRoundResult:
    """Learn the rounding of one layer's weight.

    Args:
        layer: Computes the layer; bias, and an activation function that follows, belong to it.
        weight: The float weight.
        start: Its quantization by another algorithm: gives scales, zero points and spec, and is
            what the result is compared with.
        inputs: ``[samples, ...]``, what the layer gets in the quantized model; samples of one
            feed stand together, so that held out ones come from other feeds.
        targets: ``[samples, ...]``, what the layer (with its activation) gives in the float model.
        options: See :class:`AdaRoundOptions`.
        channel_axis: The axis of the outputs that holds channels; their squared errors are summed,
            those over other axes averaged.

    Returns:
        Integers under the scales of ``start``; never worse than ``start`` on samples held out.
    """
    began = time.perf_counter()
    x, y, w = _torch(inputs), _torch(targets), _torch(weight)
    rounding = LearnedRounding(w, start)
    judges = max(1, round(len(x) * options.held_out))
    split = max(1, len(x) - judges)
    judge = slice(split if split < len(x) else 0, None)  # a single sample has to judge itself
    with _one_thread():
        _train(layer, w, rounding, x[:split], y[:split], options, channel_axis)
        learned = rounding.to_qtensor(w)
        before, after = (
            _mse(layer, torch.from_numpy(tensor.dequantize()), x[judge], y[judge], options.batch)
            for tensor in (start, learned)
        )
    improved = after < before
    return AdaRoundResult(
        tensor=learned if improved else start,
        mse_before=before,
        mse_after=min(before, after),
        flipped=int((learned.q != start.q).sum()) if improved else 0,
        improved=improved,
        seconds=time.perf_counter() - began,
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Steps are so small that threads wait for one another, and on a busy machine for good."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    layer: Layer,
    weight: torch.Tensor,
    rounding: LearnedRounding,
    x: torch.Tensor,
    y: torch.Tensor,
    options: AdaRoundOptions,
    channel_axis: int,
) -> None:
    optimizer = torch.optim.Adam([rounding.logits], lr=options.learning_rate)
    generator = torch.Generator().manual_seed(options.seed)
    warm = int(options.iterations * options.warm_start)
    for step in range(options.iterations):
        chosen = torch.randint(len(x), (options.batch,), generator=generator)
        error = layer(x[chosen], rounding(weight)) - y[chosen]
        loss = error.square().sum(channel_axis).mean()
        if step >= warm:
            progress = (step - warm) / max(1, options.iterations - warm)
            loss = loss + options.strength * rounding.indecision(_beta(progress, options.beta))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _beta(progress: float, ends: tuple[float, float]) -> float:
    """From the first of ``ends`` to the last along a half cosine."""
    first, last = ends
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _mse(layer: Layer, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(x), batch):
            part = slice(start, start + batch)
            total += float((layer(x[part], weight) - y[part]).double().square().sum())
    return total / float(y.numel())


def _torch(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))  # torch wants a writable array

"""Equalize the ranges of consecutive layers: factors by channel that cancel between them.

For layers ``y = f(W1 x + b1)`` and ``z = W2 y`` with ``f(s y) = s f(y)`` for ``s > 0`` the network
with ``W1 / s``, ``b1 / s`` and ``W2 s`` computes the same. With one scale for a whole weight the
precision of a channel is its range over the range of all, and the product of both precisions is
largest for ``s = sqrt(r1 / r2)`` (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", arXiv 1906.04721, eq. 11). A chain of three layers is two pairs
that share a layer; pairs are visited in turn until nothing moves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Link", "Side", "equalize"]

Wide = npt.NDArray[np.float64]

_SWEEPS = 20
_SETTLED = 1e-3  # relative move of all factors
_BOUND = 1e6  # of one factor in all: nobody's weights span more, and float32 keeps its digits


@dataclasses.dataclass(eq=False)
class Side:
    """Sizes of one layer's weight, changed in place by :func:`equalize`.

    Attributes:
        size: ``|W|`` as ``[groups, outputs / groups, inputs / groups]``, the largest over taps.
    """

    size: Wide

    @property
    def by_output(self) -> Wide:
        """Largest size of each output channel, ``[outputs]``."""
        return np.asarray(self.size.max(axis=2).reshape(-1))

    @property
    def by_input(self) -> Wide:
        """Largest size of each input channel, ``[inputs]``."""
        return np.asarray(self.size.max(axis=1).reshape(-1))

    def scale(self, outputs: Wide | None, inputs: Wide | None) -> None:
        """Multiply output and input channels by factors."""
        groups, each, depth = self.size.shape
        if outputs is not None:
            self.size *= outputs.reshape(groups, each, 1)
        if inputs is not None:
            self.size *= inputs.reshape(groups, 1, depth)


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """Two consecutive layers.

    Attributes:
        first: The layer that makes the channels.
        second: The layer that reads them.
        least: Smallest factor allowed to each channel, ``[channels]``.
        most: Largest.
    """

    first: Side
    second: Side
    least: Wide
    most: Wide


def equalize(links: Sequence[Link]) -> list[Wide]:
    """Factors ``s`` of each link, ``[channels]``: divide the first layer, multiply the second.

    A channel that is zero on either side keeps 1, and factors keep within their bounds.
    """
    total = [np.ones(len(link.least)) for link in links]
    for _ in range(_SWEEPS):
        moved = 0.0
        for index, link in enumerate(links):
            wanted = total[index] * _step(link.first.by_output, link.second.by_input)
            bounded = np.clip(wanted, link.least, link.most)
            step = np.clip(bounded, 1 / _BOUND, _BOUND) / total[index]
            link.first.scale(1 / step, None)
            link.second.scale(None, step)
            total[index] *= step
            moved = max(moved, float(np.abs(np.log(step)).max(initial=0.0)))
        if moved < _SETTLED:
            break
    return total


def _step(first: Wide, second: Wide) -> Wide:
    alive = (first > 0) & (second > 0) & np.isfinite(first) & np.isfinite(second)
    ratio = np.divide(first, second, out=np.ones_like(first), where=alive)
    return np.asarray(np.sqrt(ratio))

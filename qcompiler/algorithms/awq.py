"""AWQ: scale the input channels that matter up before rounding, and clip groups by their outputs.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration"
(arXiv 2306.00978). With factors ``s`` by input channel the layer computes ``(x / s) (s W)``, and a
channel with large activations is worth a finer relative grid. Both searches judge by the error of
the outputs over all data, ``tr(dW^T H dW)`` with ``H = X^T X``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.group_search import GroupSearch, search_groups
from qcompiler.numerics.affine import Array
from qcompiler.numerics.qtensor import QTensor, expand_groups
from qcompiler.runtime.products import product
from qcompiler.schemes import QSpec

__all__ = ["AwqOptions", "AwqScales", "clipped", "diagonal_blocks", "find_scales"]

_RATIOS = tuple(1.0 - 0.05 * step for step in range(11))  # of a group's range: 1.0 to 0.5
_COLUMNS = 128  # of the weights that judge the scales; their errors are much alike
_SMALLEST = 1e-4  # a factor; what makes it smaller is a dead channel


@dataclasses.dataclass(frozen=True, slots=True)
class AwqOptions:
    """What is searched.

    Attributes:
        grid: Exponents ``r = 0, 1 / grid ...`` below 1.
        duo_scaling: ``s = x_mean^r / w_mean^(1 - r)`` instead of ``x_mean^r``.
        clip: Search clipped ranges.
        insert: Insert a Mul where nothing can absorb the factors.
    """

    grid: int = 20
    duo_scaling: bool = True
    clip: bool = True
    insert: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class AwqScales:
    """The best factors.

    Attributes:
        factors: ``[K]``, float64: weights are multiplied, activations divided.
        ratio: The exponent; None when the best is not to scale.
        loss: Squared error of the outputs, in units of the Hessian.
        loss_without: The same without factors.
    """

    factors: npt.NDArray[np.float64]
    ratio: float | None
    loss: float
    loss_without: float


def find_scales(
    weights: Sequence[Array],
    means: Array,
    hessian: Array,
    spec: QSpec,
    options: AwqOptions = AwqOptions(),
    ties: npt.NDArray[np.intp] | None = None,
) -> AwqScales:
    """Search the exponent for layers that read one activation and share its factors.

    Args:
        weights: ``[K, N]`` each.
        means: ``[K]``, mean size of each channel of the activation.
        hessian: ``[K, K]``, its second moment in any scale.
        spec: How the weights will be stored.
        options: See :class:`AwqOptions`.
        ties: For each channel a number; channels of one number get one factor. None: all free.
    """
    matrix = np.concatenate([np.asarray(w, np.float32) for w in weights], axis=1)
    matrix = matrix[:, :: -(-matrix.shape[1] // _COLUMNS)]
    plain = dataclasses.replace(spec, scales=None)
    without = _loss(matrix, np.ones(len(matrix)), hessian, plain)
    best = AwqScales(np.ones(len(matrix)), None, without, without)
    sizes = _relative_sizes(matrix, plain) if options.duo_scaling else np.ones(len(matrix))
    for step in range(options.grid):
        ratio = step / options.grid
        factors = np.maximum(means.astype(np.float64), _SMALLEST) ** ratio
        factors = factors / np.maximum(sizes, _SMALLEST) ** (1.0 - ratio)
        factors = _tied(np.maximum(factors, _SMALLEST), ties)
        factors /= np.sqrt(factors.max() * factors.min())
        loss = _loss(matrix, factors, hessian, plain)
        if loss < best.loss:
            best = AwqScales(factors, ratio, loss, without)
    return best


def clipped(weight: Array, blocks: Array, spec: QSpec) -> QTensor:
    """Round to nearest under clipped ranges, judged by the outputs of each group alone.

    Args:
        weight: ``[K, N]``.
        blocks: ``[groups, g, g]``, see :func:`diagonal_blocks`.
        spec: How to store it; without quantized scales.
    """
    w = np.asarray(weight, np.float32)
    tried = [search_groups(w, spec, GroupSearch((ratio,))) for ratio in _RATIOS]
    losses = np.stack([_group_losses(tensor.dequantize() - w, blocks) for tensor in tried])
    best = losses.argmin(axis=0)[None]
    scale = np.take_along_axis(np.stack([t.scale for t in tried]), best, axis=0)[0]
    zeros = [
        np.zeros(t.scale.shape, np.int32) if t.zero_point is None else t.zero_point for t in tried
    ]
    zero = np.take_along_axis(np.stack(zeros), best, axis=0)[0]
    chosen = expand_groups(best[0], w.shape, spec)[None]
    q = np.take_along_axis(np.stack([tensor.q for tensor in tried]), chosen, axis=0)[0]
    return QTensor(q, scale, None if tried[0].zero_point is None else zero, spec)


def diagonal_blocks(hessian: Array, spec: QSpec) -> Array:
    """The part of a Hessian within each group, ``[groups, g, g]``; a ragged group ends in zeros."""
    count = len(hessian)
    size = spec.group_size or count
    groups = -(-count // size)
    padded = np.zeros((groups * size, size), np.float32)
    for start in range(0, count, size):
        stop = min(start + size, count)
        padded[start:stop, : stop - start] = hessian[start:stop, start:stop]
    return padded.reshape(groups, size, size)


def _loss(w: Array, factors: npt.NDArray[np.float64], hessian: Array, spec: QSpec) -> float:
    s = factors.astype(np.float32)[:, None]
    error: Array = search_groups(w * s, spec, GroupSearch()).dequantize() / s - w
    return float(np.einsum("kn,kn->", error, product(hessian, error), dtype=np.float64))


def _group_losses(error: Array, blocks: Array) -> Array:
    """Squared error of the outputs by group and column, ``[groups, N]``."""
    groups, size, _ = blocks.shape
    padded = np.zeros((groups * size, error.shape[1]), np.float32)
    padded[: len(error)] = error
    parts = padded.reshape(groups, size, -1)
    losses: Array = np.einsum("gkn,gkn->gn", parts, blocks @ parts)
    return losses


def _relative_sizes(w: Array, spec: QSpec) -> npt.NDArray[np.float64]:
    """Mean over columns of each row's size, relative to the largest of its group, ``[K]``."""
    size = spec.group_size or len(w)
    starts = np.arange(0, len(w), size)
    largest = np.maximum.reduceat(np.abs(w), starts, axis=0)
    rows = np.repeat(largest, size, axis=0)[: len(w)]
    found = np.abs(w) / np.where(rows > 0, rows, 1)
    return np.asarray(found.mean(axis=1, dtype=np.float64))


def _tied(
    factors: npt.NDArray[np.float64], ties: npt.NDArray[np.intp] | None
) -> npt.NDArray[np.float64]:
    """One factor for each number: the geometric mean."""
    if ties is None:
        return factors
    count = np.bincount(ties)
    logs = np.bincount(ties, np.log(factors)) / np.maximum(count, 1)
    return np.asarray(np.exp(logs)[ties])

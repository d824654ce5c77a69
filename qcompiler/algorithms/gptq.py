"""GPTQ: round a matrix row by row and let the rows to come make up for the error.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323). For a layer ``y = x W`` the squared error of the outputs is
``tr(dW^T H dW)`` with ``H = X^T X``. A row (an input channel) is rounded, and what it got wrong is
taken out of the rows not yet rounded by the least squares solution, which the Cholesky factor of
``H^-1`` holds.

Updates are lazy in halves: a range of rows is its first half, one product that brings the second
half up to date, and the second half. All but a few operations are then large products, and the
parameters of a group are found when every row before it has had its say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from qcompiler.algorithms.double_quantization import with_quantized_scales
from qcompiler.algorithms.fp8_scales import ColumnFactors, takes_fp8_scales
from qcompiler.algorithms.group_search import GroupSearch, search_groups
from qcompiler.algorithms.rtn import round_to_nearest, round_with_scale
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.affine import Array, round_trip
from qcompiler.numerics.qtensor import QTensor
from qcompiler.runtime.products import product
from qcompiler.schemes import QSpec

__all__ = ["GptqOptions", "GptqResult", "gptq", "root_of_inverse"]

Indices = npt.NDArray[np.intp]

_RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of the range of a group, in the search
_MOST_DAMP = 100.0  # times the mean of the diagonal: nothing but a diagonal is left


@dataclasses.dataclass(frozen=True, slots=True)
class GptqOptions:
    """How the error is passed on.

    Attributes:
        damp: Added to the diagonal of the Hessian, as a share of its mean (``percdamp``). Doubled
            while the factorization fails.
        block_size: Rows that are brought up to date one by one; longer ranges are brought up to
            date by products. A matter of speed alone.
        act_order: The order of rows. ``none`` takes them as they stand. ``group`` (GAR) takes the
            group with the largest diagonal of the Hessian first and within it the largest row
            first, so that groups stay contiguous. ``full`` takes the largest row first whatever
            its group; the parameters of groups must then be found before (``static_groups``).
        static_groups: Find the parameters of all groups on the float weight, before any row moves.
        search: Search clipped ranges of each group for the least squared error.
        fp8_scales: Restrict scales so that weights become E4M3 without error
            (:mod:`qcompiler.algorithms.fp8_scales`).
    """

    damp: float = 0.01
    block_size: int = 8
    act_order: Literal["none", "group", "full"] = "group"
    static_groups: bool = False
    search: bool = True
    fp8_scales: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GptqResult:
    """A rounded matrix, and how it went.

    Attributes:
        tensor: Integers and parameters as the sweep left them.
        damp: The damping that was needed; larger than the option's when factorization failed.
        dead: Input channels that were zero on all data. Their rows are rounded to nearest.
        loss: Squared error of the outputs with the damped Hessian, in its units.
    """

    tensor: QTensor
    damp: float
    dead: int
    loss: float


def gptq(
    weight: Array,
    hessian: Array,
    spec: QSpec,
    options: GptqOptions = GptqOptions(),
    *,
    where: str = "",
) -> GptqResult:
    """Round a matrix under ``spec`` with little error of its products.

    Args:
        weight: ``[K, N]``; inputs times it are the outputs.
        hessian: ``[K, K]``, ``X^T X`` of the inputs in any scale; left as it is.
        spec: BLOCK along axis 0 (the last group may be ragged), CHANNEL along axis 1, or TENSOR.
        options: See :class:`GptqOptions`.
        where: The user's name for the layer, for errors.

    Returns:
        The matrix, with what it took.

    Raises:
        QcError: QC205, the Hessian holds NaN or infinity; QC301, the weight does; QC411, the order
            would scatter groups, or the format cannot become 8-bit floats.
    """
    if not np.isfinite(hessian).all():
        raise QcError(
            Code.NOT_FINITE,
            where,
            "the second moment of the layer's input is not finite",
            "leave out the samples on which the model overflows",
        )
    w = np.asarray(weight, np.float32)
    size = spec.group_size or max(1, len(w))
    diagonal = np.diagonal(hessian)
    order = _order(len(w), size, diagonal, options)
    rows = np.concatenate([np.zeros(0, np.intp), *order])
    root, damp = root_of_inverse(hessian, rows, options.damp)
    # scales that are quantized again are so all together, before the sweep
    dynamic = len(w) > size and not options.static_groups and spec.scales is None
    search = _RATIOS if options.search and spec.width <= 4 else (1.0,)
    start = _parameters(w, spec, (1.0,) if dynamic else search, where)
    factors = None
    if options.fp8_scales:
        if not takes_fp8_scales(spec):
            raise QcError(
                Code.USAGE,
                "gptq.fp8_scales",
                f"{where or 'a weight'} is stored as {spec}, wanted integers of at most 4 bits with"
                " float scales",
                "set bits = 4 and format = 'int', and leave double_quant out",
            )
        factors = ColumnFactors.of(start)
        start = factors.snap(w, start)
    sweep = _Sweep(w[rows], root, rows // size, start, search, options.block_size, factors)
    sweep.run(0, len(rows), order if dynamic else [rows])
    live = diagonal[rows] > 0
    loss = float(np.square(sweep.errors[live], dtype=np.float64).sum())
    tensor = sweep.result(np.argsort(rows))
    return GptqResult(tensor, damp, len(w) - int(live.sum()), loss)


def root_of_inverse(hessian: Array, rows: Indices, damp: float) -> tuple[Array, float]:
    """Upper ``U`` with ``U^T U = (H + damp * mean(diag H) I)^-1``, float32, and the damping.

    ``H = R R^T`` with ``R`` upper is a Cholesky factorization read backwards, and ``U = R^-1``. A
    channel with zeros alone gets a diagonal of 1 and meets no other. The damping is doubled until
    the factorization succeeds.

    Args:
        hessian: ``[K, K]``, left as it is.
        rows: The order in which ``U`` has its rows and columns.
        damp: To begin with.
    """
    h = hessian[np.ix_(rows[::-1], rows[::-1])].astype(np.float32, copy=False)
    diagonal = np.diagonal(h).copy()
    dead = diagonal <= 0
    mean = np.float32(1.0 if dead.all() else diagonal[~dead].mean(dtype=np.float64))
    h /= mean
    h[dead] = 0.0
    h[:, dead] = 0.0
    plain = np.where(dead, np.float32(1.0), diagonal / mean)
    while True:
        np.fill_diagonal(h, plain + np.float32(damp))
        try:
            inverse = _inverse_of_factor(h)
            break
        except np.linalg.LinAlgError:
            if damp > _MOST_DAMP:
                raise
            damp = max(2.0 * damp, 1e-4)
    del h  # as large as the result
    root = np.ascontiguousarray(inverse[::-1, ::-1])
    root /= np.sqrt(mean)
    return root, damp


def _inverse_of_factor(h: Array) -> Array:
    """``L^-1`` of ``h = L L^T`` with ``L`` lower, by halves, so that the work is in products.

    Raises:
        LinAlgError: ``h`` is not positive definite.
    """
    size = len(h)
    if size <= 64:
        return np.tril(np.linalg.inv(np.linalg.cholesky(h))) if size else h
    half = size // 2
    result = np.zeros_like(h)
    first = _inverse_of_factor(h[:half, :half])
    lower = product(h[half:, :half], first.T)
    second = _inverse_of_factor(h[half:, half:] - product(lower, lower.T))
    result[:half, :half], result[half:, half:] = first, second
    result[half:, :half] = -product(second, product(lower, first))
    return result


def _order(count: int, size: int, diagonal: Array, options: GptqOptions) -> list[Indices]:
    """All rows in the order of the sweep, group by group unless it is ``full``."""
    groups = [np.arange(a, min(a + size, count)) for a in range(0, count, size)]
    if options.act_order == "none":
        return groups
    if options.act_order == "group":
        inner = [group[np.argsort(-diagonal[group], kind="stable")] for group in groups]
        return sorted(inner, key=lambda group: -float(diagonal[group[0]]))
    if len(groups) > 1 and not options.static_groups:
        raise QcError(
            Code.USAGE,
            "gptq.act_order",
            "'full' takes rows of many groups in turn, wanted groups that are known before",
            "set static_groups, or act_order = 'group'",
        )
    return [np.argsort(-diagonal, kind="stable")]


def _parameters(rows: Array, spec: QSpec, ratios: Sequence[float], where: str = "") -> QTensor:
    """Rows rounded to nearest, for the sake of scales and zero points."""
    if spec.axis is None or spec.is_float8:
        return round_to_nearest(rows, spec, where=where, clip_ratios=ratios)
    plain = dataclasses.replace(spec, scales=None)
    search = GroupSearch(tuple(ratios), refits=int(len(ratios) > 1))
    found = search_groups(rows, plain, search, where=where)
    return found if spec.scales is None else with_quantized_scales(found, spec.scales)


class _Sweep:
    """Rows in the order of the sweep, and what becomes of them."""

    def __init__(
        self,
        w: Array,
        root: Array,
        home: Indices,
        start: QTensor,
        ratios: Sequence[float],
        block_size: int,
        factors: ColumnFactors | None,
    ) -> None:
        """Begin.

        Args:
            w: ``[K, N]``, a copy: rows to come are changed.
            root: ``[K, K]``, see :func:`root_of_inverse`.
            home: Of each row the group it is stored in.
            start: Parameters before the sweep, for groups in the order they are stored in.
            ratios: Of the search for parameters.
            block_size: See :class:`GptqOptions`.
            factors: What scales may be; None restricts nothing.
        """
        self._factors = factors
        self.errors = np.empty_like(w)  # of each row, over its place on the root's diagonal
        self._values = np.empty_like(w)  # what the integers of each row stand for
        self._w, self._root, self._home = w, root, home
        self._start, self._spec = start, dataclasses.replace(start.spec, scales=None)
        self._ratios, self._block = ratios, max(1, block_size)
        # what has a scale of 0 (they may be quantized too) stands for 0, as it does under 1
        self._scale = np.where(start.scale == 0, np.float32(1), start.scale)
        zero = 0 if start.zero_point is None else start.zero_point
        self._zero = np.full(start.scale.shape, zero, np.float32)
        plain = not (start.spec.is_float8 or start.spec.codebook)
        bounds = np.asarray([start.spec.qmin, start.spec.qmax], np.float32)
        self._bounds = bounds if plain else None

    def run(self, a: int, b: int, pieces: Sequence[Indices]) -> None:
        """Round rows ``a`` to ``b``, which are up to date.

        Args:
            a: First row.
            b: Behind the last.
            pieces: What lies there: groups whose parameters are still to be found, or one piece
                whose parameters are known.
        """
        if len(pieces) > 1:
            half = len(pieces) // 2
            middle = a + sum(map(len, pieces[:half]))
            self.run(a, middle, pieces[:half])
            self._update(a, middle, b)
            self.run(middle, b, pieces[half:])
            return
        if len(self._home) > b - a:
            self._find(a, b)
        self._round(a, b)

    def result(self, back: Indices) -> QTensor:
        """The matrix; ``back`` undoes the order."""
        found = round_with_scale(
            self._values[back], self._scale, self._zero.astype(np.int32), self._spec
        )
        return dataclasses.replace(
            self._start,
            q=found.q,
            scale=np.where(self._start.scale == 0, 0, found.scale),
            zero_point=found.zero_point,
        )

    def _find(self, a: int, b: int) -> None:
        """Parameters of a group whose rows are up to date."""
        found = _parameters(self._w[a:b], self._spec, self._ratios)
        if self._factors is not None:
            found = self._factors.snap(self._w[a:b], found)
        group = self._home[a]
        self._scale[group] = found.scale[0]
        if found.zero_point is not None:
            self._zero[group] = found.zero_point[0]

    def _update(self, a: int, middle: int, b: int) -> None:
        """Take the errors of rows before ``middle`` out of those behind."""
        self._w[middle:b] -= product(self._root[a:middle, middle:b].T, self.errors[a:middle])

    def _round(self, a: int, b: int) -> None:
        if b - a > self._block:
            middle = (a + b) // 2
            self._round(a, middle)
            self._update(a, middle, b)
            self._round(middle, b)
            return
        for row in range(a, b):
            group = self._home[row] if len(self._scale) > 1 else 0
            value = self._nearest(self._w[row], self._scale[group], self._zero[group])
            error = np.subtract(self._w[row], value, out=self.errors[row])
            error /= self._root[row, row]
            self._values[row] = value
            if row + 1 < b:
                self._w[row + 1 : b] -= self._root[row, row + 1 : b, None] * error

    def _nearest(self, w: Array, scale: Array, zero: Array) -> Array:
        """What the elements of a row stand for when they are rounded."""
        if self._bounds is None:
            return round_trip(w, scale, zero.astype(np.int32), self._spec)
        value = w / scale
        np.rint(value, out=value)
        np.maximum(value, self._bounds[0] - zero, out=value)
        np.minimum(value, self._bounds[1] - zero, out=value)
        value *= scale
        return value

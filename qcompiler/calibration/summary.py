"""What is kept of one tensor while the data streams by, and the range found from it."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.calibrators import MinMax, MovingAverage
from qcompiler.calibration.clipping import entropy_range, mse_range, percentile_range
from qcompiler.calibration.histogram import Histogram
from qcompiler.calibration.layers import Layer, channel_axis, judging, patch_moment
from qcompiler.calibration.moments import PatchMoment
from qcompiler.calibration.output_error import Candidate, Judge, candidates, search
from qcompiler.calibration.rows import Channels, Reservoir
from qcompiler.diagnostics import Code, QcError
from qcompiler.recipe import CalibrationOptions
from qcompiler.schemes import QSpec

__all__ = ["TensorSummary"]

Floats = npt.NDArray[np.float32]

_ROWS = 512
_ROW_ELEMENTS = 1 << 18  # a sample takes at most 1 MiB


@dataclasses.dataclass
class TensorSummary:
    """Summary of one activation; its size does not grow with the data.

    Attributes:
        extremes: Smallest and largest value.
        average: Moving average of each batch's extremes.
        histogram: Counts of the values.
        channel_axis: Axis that the tensor's readers mix: -1, 1, or None when no layer reads it.
        channels: Statistics by channel, when there is a ``channel_axis``.
        reservoir: Sample of rows of all channels, when there is a ``channel_axis``.
        patches: Second moment of the patches of a Conv with a kernel, when one reads the tensor.
    """

    extremes: MinMax
    average: MovingAverage
    histogram: Histogram
    channel_axis: int | None = None
    channels: Channels | None = None
    reservoir: Reservoir | None = None
    patches: PatchMoment | None = None

    @classmethod
    def start(
        cls, name: str, first: Floats, layers: Sequence[Layer], momentum: float
    ) -> TensorSummary:
        """An empty summary for tensors like ``first`` that ``layers`` read."""
        axis = channel_axis(layers, first.ndim)
        summary = cls(MinMax(), MovingAverage(momentum), Histogram(), axis)
        if axis is not None:
            width = first.shape[axis]
            # different data draws different rows, so that parts of a stream merge well
            seed = zlib.crc32(first.reshape(-1)[:1024].tobytes(), zlib.crc32(name.encode()))
            summary.channels = Channels(width)
            summary.reservoir = Reservoir(max(1, min(_ROWS, _ROW_ELEMENTS // width)), seed)
            summary.patches = patch_moment(layers, first.shape, seed)
        return summary

    def update(self, x: Floats) -> None:
        """Take in a batch. Infinite values and NaN are counted and otherwise left out."""
        if not x.size:
            return
        x = np.ascontiguousarray(x)
        if not self.histogram.update(x):
            finite = np.isfinite(x)
            if not finite.any():
                return
            self.extend(float(x[finite].min()), float(x[finite].max()))
            return
        if self.channels is None or self.channel_axis is None or self.reservoir is None:
            self.extend(float(x.min()), float(x.max()))
            return
        self.extend(*self.channels.update(x, self.channel_axis))
        self.reservoir.update(x, self.channel_axis)
        if self.patches is not None:
            self.patches.update(x)

    def extend(self, lo: float, hi: float) -> None:
        """Take in the extremes of a batch."""
        self.extremes.extend(lo, hi)
        self.average.extend(lo, hi)

    def merge(self, other: TensorSummary) -> None:
        """Take in the summary of what came after."""
        self.extremes.merge(other.extremes)
        self.average.merge(other.average)
        self.histogram.merge(other.histogram)
        if self.channels is not None and other.channels is not None:
            self.channels.merge(other.channels)
        if self.reservoir is not None and other.reservoir is not None:
            self.reservoir.merge(other.reservoir)
        if self.patches is not None and other.patches is not None:
            self.patches.merge(other.patches)

    @property
    def is_empty(self) -> bool:
        """Whether no finite value was seen."""
        return self.extremes.lo > self.extremes.hi

    @property
    def is_dead(self) -> bool:
        """Whether every value was zero."""
        return self.extremes.lo == 0.0 == self.extremes.hi

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        total = self.histogram.counts.nbytes
        if self.channels is not None:
            total += self.channels.total.nbytes + 4 * self.channels.lo.nbytes
        if self.reservoir is not None:
            total += self.reservoir.rows.nbytes + self.reservoir.keys.nbytes
        if self.patches is not None:
            total += self.patches.total.nbytes
        return total

    def range(self, spec: QSpec, options: CalibrationOptions, layers: Sequence[Layer]) -> Candidate:
        """The range under ``spec`` by the method of ``options``, and the method's name.

        Raises:
            QcError: QC403, the method is ``entropy`` and the spec an 8-bit float.
        """
        if self.is_empty or self.is_dead:
            # any scale holds a zero; 1 keeps the scale of a bias that is built on it normal
            return Candidate(-1.0 if spec.symmetric else 0.0, 1.0, "dead")
        lo, hi = self.extremes.lo, self.extremes.hi
        if options.method == "minmax":
            return Candidate(lo, hi, "minmax")
        if options.method == "moving-average":
            return Candidate(*self.average.result(), "moving-average")
        values = self.histogram.distribution(lo, hi)
        if options.method == "percentile":
            return Candidate(*percentile_range(values, spec, options.percentile), "percentile")
        if options.method == "entropy":
            if spec.is_float8:
                raise QcError(
                    Code.RECIPE_KEY,
                    "calibration.method",
                    f"entropy compares evenly spaced levels, those of {spec.word} are not",
                    "use auto, minmax, percentile or mse",
                )
            return Candidate(*entropy_range(values, spec, options.bins), "entropy")
        if options.method == "mse" or not self._has_rows(layers):
            return Candidate(*mse_range(values, spec), "mse")
        assert self.channels is not None
        assert self.reservoir is not None
        judge = Judge(self.reservoir.rows, judging(layers), self.channels, values)
        found = candidates(values, min(lo, 0.0), max(hi, 0.0), spec, options.bins)
        return search(found, judge, spec)[0]

    def _has_rows(self, layers: Sequence[Layer]) -> bool:
        return bool(layers) and self.reservoir is not None and len(self.reservoir.keys) > 0

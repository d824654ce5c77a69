"""Run the float model over the data once and summarise the wanted activations.

The model that runs is the float model with the wanted values as its outputs and nothing else: the
runtime optimises it as usual (a value that is an output survives every fusion) and leaves out what
no wanted value needs. Memory is that of one batch (two small ones) and of the summaries.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.layers import Layer, layers_reading
from qcompiler.calibration.padding import Padding
from qcompiler.calibration.summary import TensorSummary
from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import remove_dead
from qcompiler.ir.provenance import module_of, origins
from qcompiler.pipeline.contract import Feed, TensorRange
from qcompiler.recipe import CalibrationOptions
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings
from qcompiler.schemes import QSpec

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Progress", "Statistics", "collect"]

_LOG = logging.getLogger(__name__)
Progress = Callable[[int, "int | None"], None]

# In 1.31.1 these two make slower kernels than what they fuse (measured: 6.8 and 1.2 times), with
# the same results.
_SETTINGS = SessionSettings(
    "all",
    {
        "optimization.disable_specified_optimizers": "SkipLayerNormFusion;BiasGeluFusion",
        # between runs the summaries want the cores that waiting threads would spin on
        "session.intra_op.allow_spinning": "0",
    },
)
_AHEAD_BYTES = 1 << 27  # of the values of one feed: smaller ones may wait for the next feed's
_FEW = 8  # samples; below this the extremes of any method are chance


@dataclasses.dataclass
class Statistics:
    """What calibration saw of each wanted activation.

    Attributes:
        summaries: By value name.
        layers: The layers that read a value, by value name: ``auto`` judges ranges by them.
        labels: What to call a value to the user.
        feeds: Feeds seen.
        samples: Samples seen: sum of the leading sizes of the first input.
        diagnostics: QC207, QC209, QC211.
        model_digest: Of the model that ran, when the statistics were loaded from a file.
    """

    summaries: dict[str, TensorSummary] = dataclasses.field(default_factory=dict)
    layers: dict[str, tuple[Layer, ...]] = dataclasses.field(default_factory=dict)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    feeds: int = 0
    samples: int = 0
    model_digest: str = ""

    def range_of(self, value: str, spec: QSpec, options: CalibrationOptions) -> TensorRange:
        """The range of a value under ``spec``, found by ``options.method``.

        Raises:
            KeyError: The value was not calibrated.
        """
        found = self.summaries[value].range(spec, options, self.layers.get(value, ()))
        return TensorRange(
            np.asarray(found.lo, np.float32), np.asarray(found.hi, np.float32), found.method
        )

    def channel_mean(self, value: str) -> npt.NDArray[np.float64] | None:
        """Mean by channel, float64 ``[channels]``; None when no layer reads the value.

        The channels are those the readers mix: the last axis for MatMul, axis 1 for Conv.
        """
        summary = self.summaries.get(value)
        if summary is None or summary.channels is None or not summary.channels.rows:
            return None
        return summary.channels.mean

    def rows(self, value: str) -> npt.NDArray[np.float32] | None:
        """A uniform sample of rows ``[<= 512, channels]``; None when no layer reads the value."""
        summary = self.summaries.get(value)
        if summary is None or summary.reservoir is None or not len(summary.reservoir.keys):
            return None
        return summary.reservoir.rows

    def second_moment(self, value: str, node: str) -> npt.NDArray[np.float32] | None:
        """``E[p p^T]`` of the inputs ``p`` that one output of ``node`` weighs and sums.

        Args:
            value: The node's data input.
            node: A MatMul, Gemm or Conv with constant weight.

        Returns:
            float32 ``[groups, K, K]``; for a Conv ``K`` runs over ``[C / groups, taps...]`` as in
            its weight, else over the rows of the ``[K, N]`` weight. None when it is not known.
        """
        summary = self.summaries.get(value)
        layer = next((x for x in self.layers.get(value, ()) if x.node == node), None)
        if summary is None or layer is None:
            return None
        if not layer.is_mixing:
            patches = summary.patches
            fits = patches is not None and patches.count and patches.fits(layer.weight.shape)
            return patches.mean if patches is not None and fits else None
        rows = self.rows(value)
        return None if rows is None else (rows.T @ rows / np.float32(len(rows)))[None]

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What the user may want to know, by value."""
        found = [item for name in self.summaries for item in self._told(name)]
        if self.summaries and self.samples < _FEW:
            found.append(
                Diagnostic(
                    Code.FEW_SAMPLES,
                    "calibration",
                    f"{self.samples} samples, wanted at least {_FEW}",
                    "give some dozens of samples that are like the real inputs",
                    {"samples": self.samples},
                )
            )
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all summaries; they do not depend on how much data was seen."""
        return sum(summary.nbytes for summary in self.summaries.values())

    def merge(self, other: Statistics) -> None:
        """Take in the statistics of data that came after, of the same model and values.

        Raises:
            QcError: QC210, the two are of different values.
        """
        if set(self.summaries) != set(other.summaries):
            differing = sorted(set(self.summaries) ^ set(other.summaries))
            raise QcError(
                Code.SUMMARY_MISMATCH,
                differing[0],
                f"{len(differing)} values are in one summary and not in the other",
                "merge summaries of the same model, target and recipe",
            )
        if self.model_digest and other.model_digest and self.model_digest != other.model_digest:
            raise QcError(
                Code.SUMMARY_MISMATCH, "calibration", "the summaries are of different models"
            )
        for name, summary in other.summaries.items():
            self.summaries[name].merge(summary)
        self.feeds += other.feeds
        self.samples += other.samples

    def save(self, path: str | os.PathLike[str], model: ir.Model) -> None:
        """Write a ``.npz`` (no pickle) that :meth:`load` reads; ``model`` is the calibrated one."""
        from qcompiler.calibration.summary_file import write

        write(self, pathlib.Path(path), model)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: ir.Model, wanted: Iterable[str] = ()
    ) -> Statistics:
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            model: The float model the statistics must be of.
            wanted: Values that must be in it.

        Raises:
            QcError: QC208 it cannot be read, QC210 it belongs to another model or plan.
        """
        from qcompiler.calibration.summary_file import read

        return read(pathlib.Path(path), model, wanted)

    def attach(self, model: ir.Model) -> None:
        """Look up the readers and user's names of the values in ``model``."""
        for name, value in _values(model, self.summaries).items():
            self.layers[name] = layers_reading(value)
            self.labels[name] = _label(value)

    def _told(self, name: str) -> Iterable[Diagnostic]:
        summary, where = self.summaries[name], self.labels.get(name, name)
        if summary.histogram.infinite:
            yield Diagnostic(
                Code.INFINITE_IGNORED,
                where,
                f"{summary.histogram.infinite} infinite values were left out of the range",
                values={"count": summary.histogram.infinite},
            )
        if summary.is_empty or summary.is_dead:
            yield Diagnostic(
                Code.DEAD_TENSOR,
                where,
                "was zero on all calibration data",
                "check that the data exercises this part of the model",
            )


def collect(
    model: ir.Model,
    wanted: Mapping[str, QSpec] | Iterable[str],
    feeds: Iterable[Feed],
    options: CalibrationOptions,
    progress: Progress | None = None,
) -> Statistics:
    """Stream the feeds once and summarise the wanted values for every method.

    Args:
        model: The float model; left as it is.
        wanted: Names of values of the main graph (graph inputs may be among them).
        feeds: Checked feeds; iterated once.
        options: ``mask`` and ``momentum`` are used here, the rest by
            :meth:`Statistics.range_of`.
        progress: Called with the number of feeds done and of all feeds, if known.

    Raises:
        QcError: QC201 no feed, QC205 NaN in an activation, QC403 ``options.mask`` names no input,
            QC408 a wanted value is not in the model, QC607 the runtime cannot run the model.
    """
    names = list(wanted)
    values = _values(model, names)
    statistics = Statistics()
    statistics.layers = {name: layers_reading(value) for name, value in values.items()}
    statistics.labels = {name: _label(value) for name, value in values.items()}
    if not names:
        return statistics
    padding = Padding.of(model, options.mask)
    masked = {name: padding.may_cut(value) for name, value in values.items()}
    session, tapped = _open(model, names)
    total = getattr(feeds, "count_hint", None)
    for feed, arrays in _runs(session, feeds, tapped):
        keep = padding.keep(feed)
        for name in names:
            array = arrays.pop(name) if name in arrays else feed[name]
            _take_in(statistics, name, array, keep if masked[name] else None, options)
        statistics.feeds += 1
        statistics.samples += _samples(feed)
        if progress is not None:
            progress(statistics.feeds, total)
    if not statistics.feeds:
        raise QcError(Code.EMPTY_CALIBRATION, "calibration", "found no feed, wanted at least one")
    _LOG.debug("calibrated %d values on %d feeds", len(names), statistics.feeds)
    return statistics


def _runs(
    session: ort.InferenceSession | None, feeds: Iterable[Feed], tapped: Sequence[str]
) -> Iterator[tuple[Feed, dict[str, npt.NDArray[Any]]]]:
    """Each feed with the wanted values; small ones are made while those before are summarised."""
    if session is None:
        yield from ((feed, {}) for feed in feeds)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        waiting: tuple[Feed, dict[str, npt.NDArray[Any]]] | None = None
        for feed in feeds:
            running = beside.submit(run, session, feed, tapped)
            if waiting is not None:
                yield waiting
            waiting = feed, running.result()
            if sum(x.nbytes for x in waiting[1].values()) > _AHEAD_BYTES:
                yield waiting
                waiting = None
        if waiting is not None:
            yield waiting


def _take_in(
    statistics: Statistics,
    name: str,
    array: npt.NDArray[Any],
    keep: npt.NDArray[np.bool_] | None,
    options: CalibrationOptions,
) -> None:
    x = array.astype(np.float32, copy=False)
    if keep is not None:
        x = Padding.cut(x, keep)
    summary = statistics.summaries.get(name)
    if summary is None:
        summary = TensorSummary.start(name, x, statistics.layers[name], options.momentum)
        statistics.summaries[name] = summary
    summary.update(x)
    if summary.histogram.nans:
        raise QcError(
            Code.NOT_FINITE,
            statistics.labels[name],
            f"the float model gives NaN here on feed {statistics.feeds}",
            "check the model on this feed; a layer that overflows cannot be quantized",
            index=statistics.feeds,
        )


def _values(model: ir.Model, names: Iterable[str]) -> dict[str, ir.Value]:
    known = {value.name: value for value in model.graph.inputs}
    known.update((output.name, output) for node in model.graph for output in node.outputs)
    found = {}
    for name in names:
        if name not in known:
            raise QcError(
                Code.BAD_PLAN,
                name,
                "the plan wants the range of a value that the model does not have",
                "make the plan from this model",
            )
        found[name] = known[name]
    return found


def _open(model: ir.Model, names: list[str]) -> tuple[ort.InferenceSession | None, list[str]]:
    """A session of what makes the wanted values, and the names it gives; inputs need none."""
    copy = model.clone()
    made = {output.name: output for node in copy.graph for output in node.outputs}
    tapped = [name for name in names if name in made]
    if not tapped:
        return None, []
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made[name] for name in tapped)
    remove_dead(copy)
    try:
        return open_session(copy, settings=_SETTINGS), tapped
    except QcError as error:
        found = error.diagnostic
        raise QcError(Code.FLOAT_MODEL_FAILS, found.where, found.message, found.hint) from error


def _label(value: ir.Value) -> str:
    producer = value.producer()
    if producer is None:
        return f"input {value.name}"
    place = module_of(producer) or ", ".join(origins(producer)[:2])
    return f"{place} (%{value.name})" if place else f"%{value.name}"


def _samples(feed: Feed) -> int:
    first = next(iter(feed.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1

"""Compare the artifact's outputs with the float model's on the same feeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.calibration.padding import Padding
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.pipeline.contract import Feed
from qcompiler.recipe import VerifyOptions
from qcompiler.runtime.session import tensors_of

__all__ = ["OutputFidelity", "compare_outputs", "judge"]

_NO_PADDING = Padding("")
_AHEAD_BYTES = 1 << 26  # of the reference's outputs that wait for the candidate's
_CHUNK = 1 << 13  # elements widened at once: they and what is made of them stay in cache

Run = Callable[[Feed], Mapping[str, npt.NDArray[np.generic]]]


@dataclasses.dataclass(frozen=True, slots=True)
class OutputFidelity:
    """How near one output is to float's, over all feeds.

    Attributes:
        output: Name of the output.
        cosine: Cosine similarity over all elements of all feeds.
        sqnr_db: 10 log10(signal power / error power), decibels; infinite when equal.
        max_abs: Largest absolute difference.
        finite: Whether the artifact's values are finite wherever float's are.
        feeds: Feeds compared.
        compared: Whether there was anything to compare; False where float gives no finite number.
        unlike: How the shapes differ, which leaves nothing to compare; "" where they do not.
    """

    output: str
    cosine: float
    sqnr_db: float
    max_abs: float
    finite: bool
    feeds: int
    compared: bool = True
    unlike: str = ""

    @property
    def only_zeros_wanted(self) -> bool:
        """Whether float gives zeros alone and the artifact something else."""
        return self.sqnr_db == -float("inf")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form (infinite numbers become None)."""
        data = dataclasses.asdict(self)
        for key in ("sqnr_db", "max_abs"):
            data[key] = data[key] if np.isfinite(data[key]) else None
        return data


class _Sums:
    """Running sums of one output, float64: millions of float32 products lose digits otherwise."""

    def __init__(self) -> None:
        self.xx = self.yy = self.xy = self.ee = 0.0
        self.max_abs = 0.0
        self.finite = True
        self.feeds = self.given = self.known = 0

    def add(self, x: npt.NDArray[np.generic], y: npt.NDArray[np.generic]) -> None:
        a, b = np.ravel(x), np.ravel(y)
        for start in range(0, len(a), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._add(a[part].astype(np.float64), b[part].astype(np.float64))
        self.feeds += 1

    def _add(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> None:
        known = np.isfinite(a)
        self.given += len(a)
        self.known += int(known.sum())
        if not known.all():
            a, b = a[known], b[known]
        if not np.isfinite(b).all():
            self.finite = False
            b = np.nan_to_num(b, posinf=0.0, neginf=0.0)
        error = b - a
        self.xx += float(a @ a)
        self.yy += float(b @ b)
        self.xy += float(a @ b)
        self.ee += float(error @ error)
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))

    def result(self, output: str) -> OutputFidelity:
        if self.given and not self.known:
            return OutputFidelity(output, 0.0, -float("inf"), 0.0, self.finite, self.feeds, False)
        norm = np.sqrt(self.xx * self.yy)
        both_zero = self.xx == 0.0 and self.yy == 0.0
        cosine = 1.0 if both_zero else (self.xy / norm if norm > 0.0 else 0.0)
        sqnr = float("inf") if self.ee == 0.0 else -float("inf")
        if self.ee > 0.0 and self.xx > 0.0:
            sqnr = 10.0 * float(np.log10(self.xx / self.ee))
        return OutputFidelity(
            output, float(min(cosine, 1.0)), sqnr, self.max_abs, self.finite, self.feeds
        )


def compare_outputs(
    reference: Run, candidate: Run, feeds: Iterable[Feed], padding: Padding = _NO_PADDING
) -> tuple[OutputFidelity, ...]:
    """Run both on ``feeds`` and compare every numeric output that has the same shape.

    Integer outputs (argmax, boxes) are compared as numbers too, sequences element by element. An
    output whose shape differs is reported as not finite with cosine 0. Rows that ``padding`` marks
    in a feed are left out: what a model gives there is never read.
    """
    sums: dict[str, _Sums] = {}
    unlike: dict[str, str] = {}
    for feed, want in _answered(reference, feeds):
        got = tensors_of(candidate(feed))
        keep = padding.keep(feed)
        for name, x in want.items():
            y = got.get(name)
            if x.dtype.kind not in "fiub":
                continue
            entry = sums.setdefault(name, _Sums())
            if y is None or x.shape != y.shape:
                given = "no such output" if y is None else str(list(y.shape))
                unlike.setdefault(name, f"the artifact gives {given}, float {list(x.shape)}")
                continue
            if keep is not None:
                x, y = padding.cut(x, keep), padding.cut(y, keep)
            entry.add(x, y)
    return tuple(
        OutputFidelity(
            name, 0.0, -float("inf"), float("inf"), False, entry.feeds, unlike=unlike[name]
        )
        if name in unlike
        else entry.result(name)
        for name, entry in sums.items()
    )


def _answered(
    reference: Run, feeds: Iterable[Feed]
) -> Iterator[tuple[Feed, Mapping[str, npt.NDArray[np.generic]]]]:
    """Feeds with the reference's outputs, found for as many feeds ahead as are cheap to keep.

    What runs behind itself runs undisturbed: its weights are in cache, no thread of another
    session spins on the cores.
    """
    ahead: list[tuple[Feed, Mapping[str, npt.NDArray[np.generic]]]] = []
    kept = 0
    for feed in feeds:
        ahead.append((feed, tensors_of(reference(feed))))
        kept += sum(x.nbytes for x in ahead[-1][1].values())
        if kept > _AHEAD_BYTES:
            yield from ahead
            ahead, kept = [], 0
    yield from ahead


def judge(
    results: Iterable[OutputFidelity],
    options: VerifyOptions,
    *,
    only_weights: bool = False,
    steps: Mapping[str, float] = MappingProxyType({}),
    counted: Collection[str] = (),
) -> list[Diagnostic]:
    """Diagnostics for outputs below the recipe's thresholds: WRONG_RESULT or LOW_FIDELITY.

    Args:
        results: Of each output.
        options: The thresholds.
        only_weights: Whether activations are in float, which decides what would help.
        steps: By output that the artifact stores in integers, how far apart its numbers are. An
            output that differs by less is no wrong result, whatever its cosine.
        counted: Outputs whose sizes hang on values (what NonMaxSuppression selects): rounding may
            select others, which is no wrong result.
    """
    remedy = (
        "round the weights by calibration data (as 'w4-gptq' does), in smaller groups or more bits"
        if only_weights
        else "give more calibration data, use recipe 'dynamic-int8'"
    ) + ", or keep layers in float"
    told = (
        _recounted(item)
        if item.unlike and item.output in counted
        else _told(item, options, remedy, steps.get(item.output, 0.0))
        for item in results
    )
    return [item for item in told if item is not None]


def _recounted(item: OutputFidelity) -> Diagnostic:
    return Diagnostic(
        Code.LOW_FIDELITY,
        item.output,
        f"{item.unlike}: its size hangs on values, of which rounding selects others; nothing is "
        "compared",
        "score the artifact on your task, by a metric and max_drop",
    )


def _told(
    item: OutputFidelity, options: VerifyOptions, remedy: str, step: float
) -> Diagnostic | None:
    def say(code: Code, message: str, hint: str) -> Diagnostic:
        numbers = {"cosine": item.cosine, "max_abs": item.max_abs}
        return Diagnostic(code, item.output, message, hint, numbers)

    if not item.compared:
        return say(
            Code.NOT_FINITE,
            f"the float model gives no finite number over {item.feeds} feeds, so nothing is known "
            "of the artifact",
            "run the float model on these feeds and mend it, or give other data",
        )
    if item.unlike:
        return say(
            Code.WRONG_RESULT,
            item.unlike,
            "hold it against the model that it was compiled from",
        )
    if item.finite and item.only_zeros_wanted:
        return say(
            Code.LOW_FIDELITY,
            f"float gives nothing but zeros over {item.feeds} feeds, of which no cosine tells; the "
            f"artifact gives up to {item.max_abs:.3g}",
            "give calibration data on which this output is not zero",
        )
    said = f"cosine {item.cosine:.4f}, SQNR {item.sqnr_db:.1f} dB over {item.feeds} feeds"
    if item.finite and item.cosine < options.wrong_cosine and item.max_abs < step:
        return say(
            Code.LOW_FIDELITY,
            f"{said}; the output is stored in steps of {step:.3g}, and float's values are within "
            f"{item.max_abs:.3g} of it: they are too small for its range",
            "keep the node that gives it in float by a rule, or give data on which it is larger",
        )
    if not item.finite or item.cosine < options.wrong_cosine:
        return say(
            Code.WRONG_RESULT,
            f"{said}; wanted at least {options.wrong_cosine}"
            + ("" if item.finite else ", and finite values"),
            "compile with dump to see each pass, or keep layers in float by a rule",
        )
    if item.cosine < options.min_cosine:
        return say(Code.LOW_FIDELITY, f"{said}; wanted at least {options.min_cosine}", remedy)
    return None

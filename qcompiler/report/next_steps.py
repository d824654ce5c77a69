"""What to try next: advice that follows from the report by plain rules, each with its evidence."""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.plan import Plan, Verdict
from qcompiler.report.model import Report
from qcompiler.report.operators import CONVERSIONS

__all__ = ["Step", "next_steps"]

_OUTLIER_BULK = 0.25  # 99.9 % of the values within a quarter of the range: two bits are lost
_LOOKS_LOSSY = 0.99  # cosine below which outliers are worth a try; above, little is to be gained
_FLOAT_SHARE = 0.15  # of the artifact's time, from which a float operator is worth a word
_CONVERSION_SHARE = 0.10
_FEW_RUNS = 20  # of the latency check
_WORST = 3
_HINTED = (
    Code.UNKNOWN_SHAPE,
    Code.OPSET_KEPT,
    Code.GROUP_SIZE,
    Code.FIXED_SHAPE,
    Code.DEAD_TENSOR,
    Code.LEFTOVER_QDQ,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One piece of advice.

    Attributes:
        title: What to do.
        why: The evidence, with numbers.
        how: A command or the lines of a recipe, or "".
        codes: Diagnostics it follows from.
    """

    title: str
    why: str
    how: str = ""
    codes: tuple[str, ...] = ()


def next_steps(report: Report, plan: Plan) -> list[Step]:
    """Steps, most pressing first; one that says so when nothing stands out."""
    found: dict[Code, list[Diagnostic]] = {}
    for item in report.diagnostics:
        found.setdefault(item.code, []).append(item)
    kept = collections.Counter(
        item.reason.code for item in plan if item.verdict is Verdict.FLOAT and item.reason
    )
    facts = _Facts(report, plan, found, kept)
    steps = [step for rule in _RULES for step in rule(facts)]
    return steps or [
        Step(
            "Nothing stands out",
            "No rule of this page found something to improve. Judge the artifact by your own "
            "metric on your own data before you deploy it.",
        )
    ]


@dataclasses.dataclass(frozen=True)
class _Facts:
    report: Report
    plan: Plan
    found: Mapping[Code, Sequence[Diagnostic]]
    kept: Mapping[Code, int]

    @property
    def cosine(self) -> float | None:
        """Of the worst output; None when not verified."""
        return min((item["cosine"] for item in self.report.fidelity), default=None)


def _kernels(facts: _Facts) -> Iterator[Step]:
    missing = facts.found.get(Code.KERNEL_NOT_SEEN, ())
    if missing:
        yield Step(
            "Find out why planned kernels do not run",
            f"{_count(len(missing), 'planned integer kernel')} not in the runtime's optimized "
            f"graph, the first at {missing[0].where}. The target may describe another version of "
            "the runtime.",
            f"qcompile probe --target {facts.report.target}",
            (Code.KERNEL_NOT_SEEN.id,),
        )


def _fidelity(facts: _Facts) -> Iterator[Step]:
    low = facts.found.get(Code.LOW_FIDELITY, ())
    if not low:
        return
    by_sensitivity = _worst(facts.report.layers, "sensitivity", largest=True)
    by_error = _worst(facts.report.layers, "sqnr_db", largest=False)
    worst = by_sensitivity or by_error
    measure = "sensitivity" if by_sensitivity else "error of its output"
    if worst:
        yield Step(
            "Keep the most damaging nodes in float",
            f"Output {low[0].where}: {low[0].message}. By {measure} the worst nodes are "
            f"{', '.join(worst)}.",
            "rules = [\n" + "".join(f"  {_rule(node)},\n" for node in worst) + "]",
            (Code.LOW_FIDELITY.id,),
        )
        return
    if facts.plan.only_weights:
        yield Step(
            "Round the weights with more care",
            f"Output {low[0].where}: {low[0].message}. Nothing but weights is quantized: an "
            "algorithm that uses calibration data, smaller groups or more bits bring them nearer.",
            "qcompile compile MODEL --recipe w4-gptq --calibration DATA -o OUT",
            (Code.LOW_FIDELITY.id,),
        )
        return
    yield Step(
        "Find the node that does the damage",
        f"Output {low[0].where}: {low[0].message}. This report has no error per node. A recipe "
        "with dynamic ranges, or more calibration data, tells whether ranges are to blame.",
        "qcompile compile MODEL --recipe dynamic-int8 -o OUT",
        (Code.LOW_FIDELITY.id,),
    )


def _worst(layers: Sequence[Mapping[str, Any]], key: str, *, largest: bool) -> list[str]:
    rows = [item for item in layers if item.get(key) is not None]
    rows.sort(key=lambda item: item[key], reverse=largest)
    return [item["node"] for item in rows[:_WORST]]


def _calibration(facts: _Facts) -> Iterator[Step]:
    few = facts.found.get(Code.FEW_SAMPLES, ())
    if few:
        yield Step(
            "Give more calibration data",
            f"{few[0].message}. Extremes of so few samples are chance.",
            codes=(Code.FEW_SAMPLES.id,),
        )
    waiting = facts.kept.get(Code.NO_CALIBRATION, 0)
    told = facts.found.get(Code.CALIBRATION_WOULD_HELP, ())
    if waiting or told:
        said = f"{_count(waiting, 'node')} in float for want of ranges."
        if not waiting:
            said = _sentence(told[0].message) + "."
        yield Step(
            "Give calibration data",
            f"{said} Some dozens of samples that are like the real inputs are enough.",
            "qcompile compile MODEL --calibration DATA.npz -o OUT",
            tuple(
                code.id
                for code, there in (
                    (Code.NO_CALIBRATION, waiting),
                    (Code.CALIBRATION_WOULD_HELP, told),
                )
                if there
            ),
        )


def _outliers(facts: _Facts) -> Iterator[Step]:
    cosine = facts.cosine
    if cosine is None or cosine >= _LOOKS_LOSSY:
        return
    values: Mapping[str, Mapping[str, Any]] = facts.report.calibration.get("values", {})
    wide = [item for item in values.values() if item.get("bulk", 1.0) < _OUTLIER_BULK]
    if wide:
        wide.sort(key=lambda item: item["bulk"])
        yield Step(
            "Look at activations with outliers",
            f"In {len(wide)} of {len(values)} calibrated values 99.9 % of the numbers fill less "
            f"than {_OUTLIER_BULK:.0%} of the range; the widest is {wide[0]['label']} "
            f"({wide[0]['bulk']:.1%}). Few of the 256 steps are left for the bulk. Clipping them "
            "may help or hurt: compare both.",
            '[calibration]\nmethod = "percentile"\npercentile = 99.99',
        )


def _slow(facts: _Facts) -> Iterator[Step]:
    if Code.MEASURED_SLOWER in facts.found:
        yield Step(
            "Refit the cost model to this machine",
            "The quantized model was measured slower than float, so its cost model is wrong here.",
            f"qcompile probe --target {facts.report.target} --save",
            (Code.MEASURED_SLOWER.id,),
        )


def _float_time(facts: _Facts) -> Iterator[Step]:
    times: Mapping[str, float] = facts.report.profile.get("nodes", {})
    total = sum(facts.report.profile.get("artifact", {}).values())
    if not total:
        return
    by_op: dict[str, list[tuple[float, Diagnostic | None]]] = {}
    for item in facts.plan:
        if item.verdict is Verdict.FLOAT and item.node in times:
            by_op.setdefault(item.op, []).append((times[item.node], item.reason))
    for op, rows in sorted(by_op.items(), key=lambda entry: -sum(us for us, _ in entry[1])):
        share = sum(us for us, _ in rows) / total
        if share < _FLOAT_SHARE:
            return
        reasons = collections.Counter(reason.code for _, reason in rows if reason)
        code = reasons.most_common(1)[0][0] if reasons else Code.NO_KERNEL
        hint = next((r.hint for _, r in rows if r and r.code is code and r.hint), "")
        yield Step(
            f"{op} in float is {share:.0%} of the artifact's time",
            f"{_count(len(rows), 'node')} kept in float. {code.explanation} "
            f"Everything else may become free and the model gets at most {1 / share:.1f} times "
            f"faster than it is now.{' Hint: ' + hint + '.' if hint else ''}",
            codes=(code.id,),
        )


def _conversions(facts: _Facts) -> Iterator[Step]:
    times: Mapping[str, float] = facts.report.profile.get("artifact", {})
    total = sum(times.values())
    share = times.get(CONVERSIONS, 0.0) / total if total else 0.0
    if share >= _CONVERSION_SHARE:
        yield Step(
            f"Conversions are {share:.0%} of the artifact's time",
            "Quantized regions are small and border on float ones. Rules that keep isolated nodes "
            "in float, or a probe of this machine's costs, may move the borders.",
            f"qcompile probe --target {facts.report.target} --save",
        )


def _proofs(facts: _Facts) -> Iterator[Step]:
    if Code.NOT_VERIFIED in facts.found:
        first = facts.found[Code.NOT_VERIFIED][0]
        yield Step(
            "Verify on a host of the target",
            f"{first.message}: what is not measured here is a prediction.",
            "qcompile verify OUT --against MODEL",
            (Code.NOT_VERIFIED.id,),
        )
    runs = facts.report.latency.get("runs", _FEW_RUNS)
    if runs < _FEW_RUNS:
        yield Step(
            "Measure the speed-up on a quiet machine",
            f"The figure at the top is the median of {runs} pairs of runs within the compile: a "
            "check, not a benchmark.",
            "qcompile bench OUT --against MODEL",
        )


def _hinted(facts: _Facts) -> Iterator[Step]:
    """What carries its own advice: the hint of the diagnostic, said once per code."""
    for code in _HINTED:
        items = [item for item in facts.found.get(code, ()) if item.hint]
        if items:
            more = f" and {len(items) - 1} more" if len(items) > 1 else ""
            place = f"{items[0].where}{more}: " if items[0].where else ""
            yield Step(_sentence(items[0].hint), f"{place}{items[0].message}.", codes=(code.id,))


def _unpaid(facts: _Facts) -> Iterator[Step]:
    count = facts.kept.get(Code.DOES_NOT_PAY, 0) + facts.kept.get(Code.FLOAT_NEIGHBOURS, 0)
    if count and not facts.report.profile:
        codes = [c for c in (Code.DOES_NOT_PAY, Code.FLOAT_NEIGHBOURS) if facts.kept.get(c)]
        yield Step(
            "Check the cost model where the model will run",
            f"{_count(count, 'node')} in float because quantizing is predicted to be no faster "
            "there; nothing of it was measured.",
            f"qcompile probe --target {facts.report.target} --save",
            tuple(code.id for code in codes),
        )


def _count(number: int, noun: str) -> str:
    return f"1 {noun} is" if number == 1 else f"{number} {noun}s are"


def _rule(node: str) -> str:
    """A rule in TOML that keeps exactly this node in float."""
    return f'{{match = {json.dumps(glob.escape(node))}, scheme = "float"}}'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


_RULES: Sequence[Callable[[_Facts], Iterator[Step]]] = (
    _kernels,
    _fidelity,
    _calibration,
    _outliers,
    _slow,
    _float_time,
    _conversions,
    _hinted,
    _unpaid,
    _proofs,
)

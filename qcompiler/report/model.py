"""The report of one compile: plain data that saves as ``report.json``."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from qcompiler.diagnostics import Diagnostic, Severity
from qcompiler.plan import NodeDecision, Plan, Verdict

__all__ = ["Report", "coverage"]

_LISTS = ("fidelity", "layers", "steps", "weights")  # fields that are tuples of tables


@dataclasses.dataclass(frozen=True)
class Report:
    """What came in, what was decided, what was proven, what it took.

    Attributes:
        source: Where the model came from, its kind, nodes, parameters, bytes.
        target: Name of the target.
        recipe: Name of the recipe.
        form: Output form.
        coverage: Nodes by verdict and by operator, see :func:`coverage`.
        calibration: Method, and per calibrated value its range, what was seen and a histogram, see
            :func:`qcompiler.report.distributions.activation_ranges`.
        weights: Per quantized weight its range and a histogram, see
            :func:`qcompiler.report.distributions.weight_ranges`.
        layers: Per planned node, in graph order, what is known of its damage: ``node`` (its name in
            the plan) and any of ``sqnr_db`` (of its output against float's, decibels; None is
            exact), ``cosine`` (the same), ``weight_sqnr_db`` and ``activation_sqnr_db`` (the shares
            of weights and of activations alone), ``sensitivity`` (damage to the model's output when
            this node alone is quantized; any unit, larger is worse) and ``returned`` (true: kept in
            float because of it).
        steps: Per step for accuracy that ``auto`` tried, in order: ``step``, ``before`` and
            ``after`` (cosine of the outputs with float's on held-out data; None: not measured; the
            first row is the artifact without any step), ``seconds``, ``kept`` (None
            in the first row) and ``why``.
        fidelity: Per output: cosine, SQNR in dB, largest error (empty when not verified).
        kernels: Planned and seen kernels (empty when not provable on this host).
        latency: Milliseconds of float and artifact on the sample feed, and their ratio.
        profile: Microseconds by operator on the sample feeds: ``source`` (``measured``), ``runs``,
            ``float`` and ``artifact`` (operator -> microseconds of a run, each node's fastest of
            ``runs``, under the names of :func:`qcompiler.report.operators.family`), ``nodes``
            (planned node -> microseconds in the artifact). Empty when not measured.
        sizes: Bytes of the float model's and the artifact's weights.
        timings: Seconds per phase and per pass.
        versions: Versions of the packages that matter.
        diagnostics: Everything the user may want to know.
    """

    source: Mapping[str, Any]
    target: str
    recipe: str
    form: str
    coverage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    fidelity: tuple[Mapping[str, Any], ...] = ()
    kernels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latency: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    profile: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    timings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """Diagnostics of level error."""
        return tuple(item for item in self.diagnostics if item.severity is Severity.ERROR)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_dict` reads it back."""
        data = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "diagnostics"
        }
        for name in _LISTS:
            data[name] = [dict(item) for item in data[name]]
        data["diagnostics"] = [item.to_dict() for item in self.diagnostics]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read what :meth:`to_dict` wrote."""
        data = dict(data)
        for name in _LISTS:
            data[name] = tuple(data.get(name, ()))
        data["diagnostics"] = tuple(Diagnostic.from_dict(d) for d in data.get("diagnostics", ()))
        return cls(**data)

    def __str__(self) -> str:
        from qcompiler.report.tables import summary_text

        return summary_text(self)


def coverage(plan: Plan) -> dict[str, Any]:
    """Count verdicts over the user's nodes and over the planned graph.

    Returns:
        ``user``: verdict -> number of the user's nodes; ``planned``: verdict -> nodes of the
        planned graph; ``by_op``: operator -> verdict -> nodes of the planned graph; ``reasons``:
        diagnostic code -> planned nodes kept in float for it; ``unexplained``: float nodes without
        a reason (always 0, counted all the same).
    """
    user: collections.Counter[str] = collections.Counter()
    by_op: dict[str, collections.Counter[str]] = {}
    reasons: collections.Counter[str] = collections.Counter()
    unexplained = 0
    for decision in plan:
        for _ in decision.origin:
            user[decision.verdict.value] += 1
        by_op.setdefault(decision.op, collections.Counter())[decision.verdict.value] += 1
        if decision.verdict is Verdict.FLOAT:
            unexplained += decision.reason is None
            if decision.reason is not None:
                reasons[decision.reason.code.id] += 1
    user[Verdict.REMOVED.value] += sum(len(item.origin) for item in plan.removed)
    return {
        "user": {name: count for name, count in user.items() if count},
        "planned": plan.count(),
        "by_op": {op: dict(counts) for op, counts in sorted(by_op.items())},
        "reasons": dict(reasons.most_common()),
        "unexplained": unexplained,
    }


def removed_decisions(
    removed: Mapping[str, str], op_of: Mapping[str, str]
) -> tuple[NodeDecision, ...]:
    """Decisions for the user's nodes that exact passes folded away."""
    return tuple(
        NodeDecision(name, op_of.get(name, "?"), Verdict.REMOVED, into=by, origin=(name,))
        for name, by in sorted(removed.items())
    )

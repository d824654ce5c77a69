"""The rows of the page's table of nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.report.model import Report

__all__ = ["NodeRow", "node_rows"]


@dataclasses.dataclass(frozen=True, slots=True)
class NodeRow:
    """One row.

    Attributes:
        title: What the user calls the place: module path, or name of the node.
        node: Name in the planned graph.
        origin: The user's nodes that it stands for, when they are called otherwise.
        op: Operator.
        verdict: What became of it.
        how: Kernel and specs, or into what it went.
        code: Code of the reason, or "".
        message: The reason's message.
        hint: What the user can do about it.
        gain_us: Predicted gain.
        time_us: Measured microseconds in the artifact.
        sqnr_db: Error of its output.
        sensitivity: Damage to the model's output.
    """

    title: str
    node: str
    origin: tuple[str, ...]
    op: str
    verdict: str
    how: str
    code: str
    message: str
    hint: str
    gain_us: float | None
    time_us: float | None
    sqnr_db: float | None
    sensitivity: float | None


def node_rows(report: Report, plan: Plan) -> list[NodeRow]:
    """A row per planned node in graph order, then one per user's node that was folded away."""
    times: Mapping[str, float] = report.profile.get("nodes", {})
    layers = {item["node"]: item for item in report.layers}
    decisions: Iterable[NodeDecision] = (*plan, *plan.removed)
    return [_row(item, times, layers.get(item.node, {})) for item in decisions]


def _row(decision: NodeDecision, times: Mapping[str, float], layer: Mapping[str, Any]) -> NodeRow:
    reason = decision.reason
    removed = decision.verdict is Verdict.REMOVED
    return NodeRow(
        title=decision.module or decision.node,
        node=decision.node,
        origin=decision.origin if decision.origin != (decision.node,) else (),
        op=decision.op,
        verdict=decision.verdict.value,
        how=_how(decision),
        code=reason.code.id if reason else "",
        message=reason.message if reason else "",
        hint=reason.hint if reason else "",
        gain_us=decision.gain_us,
        time_us=None if removed else times.get(decision.node),
        sqnr_db=layer.get("sqnr_db"),
        sensitivity=layer.get("sensitivity"),
    )


def _how(decision: NodeDecision) -> str:
    if decision.verdict is Verdict.QUANTIZED:
        taken = ", ".join(str(spec) if spec else "float" for spec in decision.inputs)
        given = ", ".join(str(spec) if spec else "float" for spec in decision.outputs)
        return f"{decision.kernel} ({taken}) → {given or 'float'}"
    if decision.verdict is Verdict.FUSED:
        return f"into {decision.into}"
    if decision.verdict is Verdict.REMOVED:
        return f"by {decision.into}"
    return ""

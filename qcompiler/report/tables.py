"""Terminal tables of a report and a plan, drawn with rich."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qcompiler.diagnostics import Diagnostic, Severity
from qcompiler.plan import NodeDecision, Plan, Verdict
from qcompiler.report.model import Report

__all__ = [
    "diagnostics_table",
    "plan_table",
    "sensitivity_table",
    "steps_table",
    "summary",
    "summary_text",
]

_COLOURS = {
    Verdict.QUANTIZED: "green",
    Verdict.CARRIED: "cyan",
    Verdict.FUSED: "green",
    Verdict.FLOAT: "yellow",
    Verdict.REMOVED: "dim",
}
_LEVELS = {Severity.INFO: "dim", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
_OUTPUTS = 6  # of which the summary tells one by one; decoders have two for each layer besides


def summary(report: Report) -> RenderableType:
    """Headline, coverage and proofs of one compile."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    source = report.source
    table.add_row("model", f"{source.get('name', '')} ({source.get('kind', '')})")
    table.add_row("target", f"{report.target}, recipe {report.recipe}, form {report.form}")
    for label, text in _facts(report):
        table.add_row(label, text)
    more = [steps_table(report)] if report.steps else []
    more += [diagnostics_table(report.diagnostics)] if report.diagnostics else []
    return Group(table, *more) if more else table


def summary_text(report: Report) -> str:
    """:func:`summary` as plain text, 100 columns."""
    return _plain(summary(report))


def plan_table(plan: Plan, *, removed: bool = False) -> RenderableType:
    """Every node's verdict with its kernel or reason."""
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("node", overflow="fold", max_width=48)
    table.add_column("op")
    table.add_column("verdict")
    table.add_column("how, or why not", overflow="fold")
    decisions: Iterable[NodeDecision] = [*plan, *plan.removed] if removed else plan
    for decision in decisions:
        name = decision.node if not decision.module else f"{decision.module} ({decision.node})"
        verdict = Text(decision.verdict.value, style=_COLOURS[decision.verdict])
        table.add_row(name, decision.op, verdict, _how(decision))
    return table


def sensitivity_table(report: Report, plan: Plan) -> RenderableType:
    """Planned nodes by what quantizing each alone does to the model's output, worst first."""
    rows = [item for item in report.layers if item.get("sensitivity") is not None]
    if not rows:
        return Text(
            "sensitivity was not measured: compile with --sensitivity, --keep-float or --max-drop"
            " (which measures it when the first artifact drops too far)"
        )
    rows.sort(key=lambda item: -item["sensitivity"])
    largest = rows[0]["sensitivity"]
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("", justify="right")
    table.add_column("node", overflow="fold", max_width=48)
    table.add_column("op")
    table.add_column("damage", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("now", no_wrap=True)
    for place, item in enumerate(rows, 1):
        decision = plan.nodes.get(item["node"])
        share = item["sensitivity"] / largest if largest > 0 else 0.0
        name = (
            item["node"]
            if not decision or not decision.module
            else (f"{decision.module} ({item['node']})")
        )
        now = (
            "float, returned"
            if item.get("returned")
            else decision.verdict.value
            if decision
            else ""
        )
        table.add_row(
            str(place), name, decision.op if decision else "", f"{item['sensitivity']:.3%}",
            "█" * max(round(12 * share), int(share > 0)), now,
        )  # fmt: skip
    return table


def steps_table(report: Report) -> RenderableType:
    """The steps for accuracy that were tried, and what each bought."""
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("step for accuracy")
    table.add_column("cosine before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("why", overflow="fold")
    for item in report.steps:
        before, after = (
            "" if item[key] is None else f"{item[key]:.6f}" for key in ("before", "after")
        )
        kept = {None: Text(""), True: Text("kept", style="green")}.get(
            item["kept"], Text("dropped", style="dim")
        )
        table.add_row(item["step"], before, after, f"{item['seconds']:.1f}", kept, item["why"])
    return table


def diagnostics_table(diagnostics: Iterable[Diagnostic]) -> RenderableType:
    """Diagnostics, most severe first; equal codes are counted after the third.

    A hint that the one before has as well is not said again.
    """
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("code")
    table.add_column("where", overflow="fold", max_width=36)
    table.add_column("what", overflow="fold")
    shown: dict[str, int] = {}
    hints: dict[str, str] = {}
    for item in sorted(diagnostics, key=lambda item: -item.severity):
        shown[item.code.id] = shown.get(item.code.id, 0) + 1
        if shown[item.code.id] > 3:
            continue
        hint = item.hint if hints.get(item.code.id) != item.hint else ""
        hints[item.code.id] = item.hint
        what = item.message + (f"\nhint: {hint}" if hint else "")
        table.add_row(Text(item.code.id, style=_LEVELS[item.severity]), item.where, what)
    for code, count in shown.items():
        if count > 3:
            table.add_row(code, "", f"... and {count - 3} more")
    return table


def _facts(report: Report) -> Iterable[tuple[str, str]]:
    if report.latency:
        ratio = report.latency["ratio"]
        before_ms, after_ms = report.latency["float_ms"], report.latency["artifact_ms"]
        feed = report.latency["feed"]
        yield "speed", f"{ratio:.2f}x float ({before_ms:.2f} ms -> {after_ms:.2f} ms on {feed})"
    if report.sizes:
        before, after = report.sizes["float_bytes"], report.sizes["artifact_bytes"]
        yield (
            "size",
            f"{before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({after / max(before, 1):.0%})",
        )
    shown = report.fidelity[:_OUTPUTS]
    for item in shown:
        yield f"fidelity {item['output']}", _nearness(item)
    if rest := report.fidelity[len(shown) :]:
        worst = min(rest, key=lambda item: float(item["cosine"]))
        yield f"fidelity of {len(rest)} more", f"at worst {worst['output']}: {_nearness(worst)}"
    if report.coverage:
        counts = report.coverage["planned"]
        yield "nodes", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        users = report.coverage["user"]
        yield "your nodes", ", ".join(f"{count} {verdict}" for verdict, count in users.items())
    if report.kernels:
        yield "kernels", f"{report.kernels['seen']} seen of {report.kernels['planned']} planned"
    if report.timings:
        phases = ", ".join(f"{k} {v:.2f}" for k, v in report.timings["phases"].items())
        yield "seconds", f"{report.timings['total']:.2f} ({phases})"


def _nearness(item: Mapping[str, Any]) -> str:
    """How near one output is to float's."""
    if not item.get("compared", True):
        return "nothing to compare: float's numbers are not finite"
    if unlike := item.get("unlike"):
        return str(unlike)
    if item["sqnr_db"] is not None:
        sqnr = f"SQNR {item['sqnr_db']:.1f} dB"
    else:
        sqnr = "float gives zeros" if item["max_abs"] else "exact"
    return f"cosine {item['cosine']:.5f}, {sqnr}, max error {item['max_abs']:.3g}"


def _how(decision: NodeDecision) -> str:
    if decision.verdict is Verdict.QUANTIZED:
        specs = ", ".join(str(spec) if spec else "float" for spec in decision.inputs)
        out = ", ".join(str(spec) if spec else "float" for spec in decision.outputs)
        text = f"{decision.kernel}  ({specs}) -> {out or 'float'}"
    elif decision.verdict is Verdict.FUSED:
        text = f"into {decision.into}"
    elif decision.verdict is Verdict.REMOVED:
        text = f"by {decision.into}"
    else:
        text = ""
    if decision.reason is not None:
        why = f"{decision.reason.code.id} {decision.reason.message}"
        hint = f"\nhint: {decision.reason.hint}" if decision.reason.hint else ""
        text = f"{text}  {why}{hint}".strip()
    return text


def _plain(renderable: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None).print(renderable)
    return stream.getvalue().rstrip() + "\n"

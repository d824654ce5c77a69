"""``report.html``: one file with everything in it, that makes no request.

The template is filled with autoescape on: names of nodes come from the user's model and may hold
anything. Style, scripts and data stand in the page, and a content security policy lets the browser
run these scripts, known by their digests, and load nothing at all.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.plan import Plan, Verdict
from qcompiler.remedies import REMEDIES
from qcompiler.report.charts import chart_data
from qcompiler.report.model import Report
from qcompiler.report.next_steps import next_steps
from qcompiler.report.rows import NodeRow, node_rows

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

__all__ = ["PAGE", "page_template", "report_page", "write_page"]

PAGE = "report.html"

_ASSETS = pathlib.Path(__file__).parent / "assets"
_MEGA = 1e6
_UNLIKE = (Code.LOW_FIDELITY, Code.WRONG_RESULT)
_STYLES = ("page.css",)
_SCRIPTS = ("chart.umd.min.js", "charts.js", "table.js")


def report_page(report: Report, plan: Plan) -> str:
    """The page of one artifact as HTML text."""
    rows = node_rows(report, plan)
    return page_template().render(
        report=report,
        name=report.source.get("name") or "model",
        rows=rows,
        has={
            key: any(getattr(row, key) is not None for row in rows)
            for key in ("gain_us", "time_us", "sqnr_db", "sensitivity")
        },
        ops=sorted({row.op for row in rows}),
        verdicts=[verdict.value for verdict in Verdict],
        removed=sum(row.verdict == Verdict.REMOVED.value for row in rows),
        headline=_headline(report),
        levels=_levels(report.diagnostics),
        steps=next_steps(report, plan),
        charts=chart_data(report, plan),
        codes=_codes(report, rows),
        remedies=REMEDIES,
        assets=_assets(),
    )


def write_page(report: Report, plan: Plan, path: str | os.PathLike[str]) -> pathlib.Path:
    """Write :func:`report_page` to ``path``, whole or not at all.

    Raises:
        QcError: QC706, the place cannot be written.
    """
    final = pathlib.Path(path)
    if final.exists() and not final.is_file():  # a device would give way to the page
        what = "folder" if final.is_dir() else "device"
        raise QcError(
            Code.NOT_WRITABLE, str(final), f"is a {what}, wanted a file", "choose another name"
        )
    text = report_page(report, plan)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
        staging = pathlib.Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            staging.chmod(0o644)
            staging.replace(final)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise QcError(
            Code.NOT_WRITABLE,
            str(final),
            f"cannot be written: {error.strerror or error}",
            "choose another file, or free some space",
        ) from error
    return final


def _headline(report: Report) -> dict[str, Any]:
    """The figures of the first screen; what is not known is None."""
    worst = min(report.fidelity, key=lambda item: item["cosine"], default=None)
    planned: Mapping[str, int] = report.coverage.get("planned", {})
    total = sum(planned.values())
    low = total - planned.get(Verdict.FLOAT.value, 0)
    before = report.sizes.get("float_bytes", 0)
    return {
        "latency": report.latency or None,
        "size": report.sizes if before else None,
        "size_ratio": report.sizes["artifact_bytes"] / before if before else None,
        "worst": worst,
        "unlike": any(item.code in _UNLIKE for item in report.diagnostics),
        "low": low,
        "nodes": total,
        "kernels": report.kernels or None,
    }


def _levels(diagnostics: Iterable[Diagnostic]) -> dict[str, list[list[tuple[Diagnostic, int]]]]:
    """Diagnostics by level, most severe first, and by code; equal messages are counted once."""
    grouped: dict[Code, dict[str, list[Diagnostic]]] = {}
    for item in sorted(diagnostics, key=lambda item: -item.severity):
        grouped.setdefault(item.code, {}).setdefault(item.message, []).append(item)
    levels: dict[str, list[list[tuple[Diagnostic, int]]]] = {}
    for code, messages in grouped.items():
        rows = [(items[0], len(items)) for items in messages.values()]
        levels.setdefault(code.severity.name.lower(), []).append(rows)
    return levels


def _codes(report: Report, rows: Iterable[NodeRow]) -> list[tuple[Code, int]]:
    """Every code the page names, and how many planned nodes are in float for it."""
    named = {row.code for row in rows if row.code}
    named.update(item.code.id for item in report.diagnostics)
    reasons: Mapping[str, int] = report.coverage.get("reasons", {})
    named.update(reasons)
    return [(code, reasons.get(code.id, 0)) for code in Code if code.id in named]


@functools.cache
def page_template() -> jinja2.Template:
    """The page to be filled; jinja2 takes as long to read it as to fill it."""
    return _environment().get_template("page.html.j2")


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters.update(number=_number, micros=_micros, megabytes=_megabytes, code=_code)
    return environment


@functools.cache
def _assets() -> dict[str, Any]:
    """Styles and scripts ready to stand in the page, and the policy that allows no others."""
    from markupsafe import Markup

    def read(name: str) -> Markup:
        return Markup((_ASSETS / name).read_text(encoding="utf-8"))

    styles = [read(name) for name in _STYLES]
    scripts = [read(name) for name in _SCRIPTS]
    policy = "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(_digest(text) for text in scripts),
            "style-src " + " ".join(_digest(text) for text in styles),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    licence = (_ASSETS / "chart.LICENSE.txt").read_text(encoding="utf-8")
    return {"styles": styles, "scripts": scripts, "policy": policy, "licence": licence}


def _digest(text: str) -> str:
    """A source expression that allows exactly this inline text."""
    raw = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(raw).decode()}'"


def _number(number: float | None, digits: int = 2) -> str:
    """A number with so many decimals; nothing for None, a word for infinity."""
    if number is None:
        return ""
    return f"{number:,.{digits}f}" if math.isfinite(number) else str(number)


def _code(text: str) -> Markup:
    """Text in which backticks mark code, as in Markdown."""
    from markupsafe import Markup, escape

    parts = [escape(part) for part in text.split("`")]
    marked = (Markup("<code>") + part + Markup("</code>") for part in parts[1::2])
    pairs = itertools.zip_longest(parts[::2], marked, fillvalue=Markup())
    return Markup().join(piece for pair in pairs for piece in pair)


def _micros(us: float | None) -> str:
    """Microseconds with three digits or so."""
    if us is None:
        return ""
    return f"{us:,.0f}" if abs(us) >= 100 else f"{us:.1f}"


def _megabytes(size: int) -> str:
    return f"{size / _MEGA:.1f} MB" if size >= _MEGA / 10 else f"{size / 1e3:.1f} kB"

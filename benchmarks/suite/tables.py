"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.bars import check
from suite.contestants import CONTESTANTS

__all__ = ["markdown"]


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report: machine, bars, a table a model, experiments."""
    parts = [_machine(results["machine"], results.get("settings", {})), _bars(results)]
    parts += [_model(name, data) for name, data in results.get("models", {}).items()]
    parts += _experiments(results.get("experiments", {}))
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    packages = {**machine["packages"], **{f"peer {k}": v for k, v in machine["peers"].items()}}
    host = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}. "
        f"Instruction sets: {', '.join(machine['isa']) or 'none of note'}."
    )
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = ["# Benchmark", "", host, "", f"{versions}."]
    if settings:
        how = (
            f"{settings['rounds']} interleaved rounds of {settings['seconds']} s, a process each. "
            "Speed-up: median over rounds of float / contestant, with its 10-90 % range."
        )
        lines += ["", how]
    if settings.get("quick"):
        lines += ["", "**A quick run: few rounds, scores on part of the data. Not for quoting.**"]
    return "\n".join(lines)


def _bars(results: Mapping[str, Any]) -> str:
    amx = "amx_int8" in results["machine"]["isa"]
    rows = []
    for item in check(results):
        sign = "<=" if item.bar.at_most else ">="
        host = "" if amx or not item.bar.needs_amx else " (stated for AMX, not this host)"
        value = "" if item.value is None else f"{item.value:.3g}{item.bar.unit}"
        wanted = f"{sign} {item.bar.limit:g}{item.bar.unit}"
        rows.append([item.bar.what, wanted, value, item.verdict + host])
    return "## Bars\n\n" + _table(["what", "bar", "measured", ""], rows)


def _model(name: str, data: Mapping[str, Any]) -> str:
    rows_of = data["contestants"]
    feeds = _keys(row.get("latency", {}) for row in rows_of.values())
    measures = _keys(row.get("fidelity", {}) for row in rows_of.values())
    header = ["", *(f"{feed} ms" for feed in feeds), *(f"{feed} speed-up" for feed in feeds)]
    header += [*measures, "compile s", "peak MB", "MB"]
    rows, notes = [], []
    for contestant in CONTESTANTS.values():
        row = rows_of.get(contestant.name)
        if row is None:
            continue
        cells = [contestant.label]
        cells += [_number(row, "latency", feed, "median_ms", "{:.2f}") for feed in feeds]
        cells += [_ratio(row.get("latency", {}).get(feed, {})) for feed in feeds]
        cells += [_number(row, "fidelity", key, None, "{:.4f}") for key in measures]
        made = row.get("compile", {})
        cells += [_cell(made.get("seconds"), "{:.1f}"), _cell(made.get("peak_mb"), "{:.0f}")]
        cells.append(_cell(made["bytes"] / 1e6 if "bytes" in made else None, "{:.1f}"))
        rows.append(cells)
        notes += [f"- {contestant.label}: {why}" for why in _failures(row)]
    text = f"## {name}\n\n{data['description']}.\n\n" + _table(header, rows)
    return text + ("\n\nNot run:\n\n" + "\n".join(notes) if notes else "")


def _keys(tables: Any) -> list[str]:
    """Keys of all tables but ``failed``, in the order in which they first occur."""
    return list(dict.fromkeys(key for table in tables for key in table if key != "failed"))


def _failures(row: Mapping[str, Any]) -> list[str]:
    found = [row.get(part, {}).get("failed") for part in ("compile", "fidelity", "latency")]
    timed = row.get("latency", {}).values()
    found += [entry.get("failed") for entry in timed if isinstance(entry, Mapping)]
    return list(dict.fromkeys(why for why in found if why))


def _number(row: Mapping[str, Any], part: str, key: str, field: str | None, form: str) -> str:
    found = row.get(part, {}).get(key)
    if isinstance(found, Mapping):
        found = found.get(field) if "failed" not in found else None
    return _cell(found, form)


def _ratio(entry: Mapping[str, Any]) -> str:
    if "ratio" not in entry:
        return "-"
    return f"{entry['ratio']:.2f}x ({entry['low']:.2f}-{entry['high']:.2f})"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _experiments(data: Mapping[str, Any]) -> list[str]:
    parts = []
    if "compile_time" in data:
        rows = [
            [name, _cell(row.get("seconds"), "{:.2f}"), _cell(row.get("with_imports"), "{:.2f}"),
             _cell(row.get("peak_mb"), "{:.0f}"), row.get("failed", "")]
            for name, row in data["compile_time"].items()
        ]  # fmt: skip
        header = ["", "s", "s, imports included", "peak MB", ""]
        parts.append("## Compile time, minilm static, 64 sentences\n\n" + _table(header, rows))
    if "memory" in data:
        rows = [
            [count, _cell(row.get("peak_mb"), "{:.0f}"), _cell(row.get("imports_mb"), "{:.0f}"),
             _cell(row.get("seconds"), "{:.1f}"), row.get("failed", "")]
            for count, row in data["memory"].items()
        ]  # fmt: skip
        header = ["sentences", "peak MB", "of it imports", "s", ""]
        parts.append("## Memory, minilm static, percentile calibration\n\n" + _table(header, rows))
    if "import" in data:
        found = data["import"]
        parts.append(
            f"## Import\n\n`import qcompiler`: {found['seconds']:.2f} s; with its names "
            f"`Artifact, Recipe, qcompile`: {found['seconds_names']:.2f} s; "
            f"torch {'imported' if found['torch'] else 'not imported'}."
        )
    if "coverage" in data:
        parts.append("## Coverage\n\n" + _coverage(data["coverage"]))
    return parts


def _coverage(data: Mapping[str, Any]) -> str:
    header = ["", "nodes", "without verdict", "unexplained", "verdicts", "kernels seen / planned",
              "missed silently", ""]  # fmt: skip
    rows = []
    for name, row in data.items():
        if "failed" in row:
            rows.append([name, "-", "-", "-", "-", "-", "-", row["failed"]])
            continue
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in row["verdicts"].items())
        rows.append(
            [name, str(row["nodes"]), str(row["without_verdict"]), str(row["unexplained"]),
             verdicts, f"{row['seen']} / {row['planned']}", str(len(row["missed_silently"])), ""]
        )  # fmt: skip
    return _table(header, rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines
    )

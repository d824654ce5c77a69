"""A target as a Markdown page: every row with its source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qcompiler.schemes import QSpec
from qcompiler.targets.cost import Work, cost_us
from qcompiler.targets.schema import Cost, Target, Trap

__all__ = ["describe"]

# linear layers and convolutions whose predicted times stand in the page
_LINEAR = tuple(
    (f"{rows} x 1024 x 1024", Work(rows * 1024 * 1024, rows, max(rows * 1024, 1024)))
    for rows in (1, 16, 128, 1024)
)
_CONV = tuple(
    (name, Work(macs, rows, elements, kind))
    for name, macs, rows, elements, kind in (
        ("1x1 256 -> 256 at 28x28", 256 * 256 * 784, 784, 256 * 784, "pointwise"),
        ("3x3 64 -> 64 at 56x56", 9 * 64 * 64 * 3136, 3136, 64 * 3136, "dense"),
        ("3x3 depthwise 96 at 56x56", 9 * 96 * 3136, 3136, 96 * 3136, "depthwise"),
        ("3x3 3 -> 32 stride 2 at 224x224", 27 * 32 * 12544, 12544, 32 * 12544, "stem"),
    )
)


def describe(target: Target) -> str:
    """The page of a target, without a newline at its end."""
    parts = [
        f"# {target.name}",
        "",
        f"{target.description[0].upper()}{target.description[1:]}.",
        "",
        *_facts(target),
        "",
        "## Computes",
        "",
        *_table(
            ("kernel", "operator", "scheme", "inputs -> output", "forms", "runs as", "absorbs",
             "conditions", "source"),
            [
                (
                    f"`{row.id}`",
                    row.op,
                    row.scheme.value,
                    f"{_specs(row.inputs)} -> {_specs((row.output,))}",
                    ", ".join(form.value for form in row.forms),
                    ", ".join(f"`{op}`" for op in (row.runtime_op, *row.qdq_ops) if op)
                    or ("float, as a reference" if row.reference else "-"),
                    ", ".join(row.fuses) or "-",
                    ", ".join(row.conditions) or "-",
                    row.source,
                )
                for row in target.kernels
            ],
        ),
    ]  # fmt: skip
    moved = [("carries", row) for row in target.carries] + [
        ("unifies", row) for row in target.unifies
    ]
    if moved:
        rows = [(row.op, role, ", ".join(row.conditions) or "-", row.source) for role, row in moved]
        parts += ["", "## Moves low-precision data", ""]
        parts += _table(("operator", "role", "conditions", "source"), rows)
    if target.caches:
        parts += ["", "## Keeps keys and values", ""]
        cells = [(f"`{row.id}`", f"`{row.op}`", row.since, row.source) for row in target.caches]
        parts += _table(("`kv_cache`", "operator", "since", "source"), cells)
    if target.traps:
        parts += ["", "## Traps", ""]
        parts += _table(
            ("trap", "kernels", "armed when", "what happens", "what the compiler does", "source"),
            [
                (f"`{t.id}`", ", ".join(t.kernels), t.condition, t.effect, t.remedy, _seen(t))
                for t in target.traps
            ],
        )
    if target.costs:
        parts += ["", "## Costs", "", *_speedups(target), "", *_costs(target.costs.items())]
    return "\n".join(parts)


def _seen(trap: Trap) -> str:
    return f"{trap.source}; mended in {trap.mended}" if trap.mended else trap.source


def _facts(target: Target) -> list[str]:
    facts = [
        f"- runtime: {target.runtime}, form `{target.form.value}`, opset {target.opset}",
        f"- needs: {', '.join(target.isa) or 'nothing in particular'}",
    ]
    if target.weight_bits:
        facts.append(f"- weights use {target.weight_bits} bits, so that no partial sum saturates")
    facts += [f"- session option `{key}` = `{value}`" for key, value in target.options.items()]
    facts += [
        f"- known range: {op} [{lo:g}, {hi:g}]" for op, (lo, hi) in sorted(target.fixed.items())
    ]
    threads = f" ({target.threads} threads)" if target.costs else ""
    return [*facts, f"- costs: {target.source or 'none'}{threads}"]


def _speedups(target: Target) -> list[str]:
    """Predicted times of some layers in float and in each kernel, conversions excluded."""
    rows = []
    for op, layers in (("MatMul", _LINEAR), ("Conv", _CONV)):
        kernels = [row.id for row in target.kernels if row.op == op]
        for name, work in layers:
            base = cost_us(target, f"float.{op}", work)
            for kernel in kernels:
                time = cost_us(target, kernel, work)
                if base and time:
                    rows.append(
                        (name, f"`{kernel}`", f"{base:.0f}", f"{time:.0f}", f"{base / time:.2f}")
                    )
    return _table(("layer", "kernel", "float us", "us", "times float"), rows)


def _costs(costs: Iterable[tuple[str, Cost]]) -> list[str]:
    rows = [
        (
            f"`{key}`",
            f"{cost.fixed_us:g}",
            ", ".join(f"{ns:g} at {rows:g}" for rows, ns in cost.per_mac_ns) or "-",
            f"{cost.per_element_ns:g}",
        )
        for key, cost in sorted(costs)
    ]
    return _table(("key", "fixed us", "ns per multiply-accumulate at rows", "ns per element"), rows)


def _specs(specs: Sequence[QSpec | None]) -> str:
    return ", ".join(f"`{spec}`" if spec else "float" for spec in specs)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return lines + ["| " + " | ".join(row) + " |" for row in cells]

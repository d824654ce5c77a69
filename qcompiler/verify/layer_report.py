"""The layer rows of a report: what comparing node by node found, beside what was known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompiler.artifact import Artifact
    from qcompiler.pipeline.contract import Feed

__all__ = ["merge_layers", "with_layers"]


def with_layers(
    artifact: Artifact, reference: ir.Model, samples: Sequence[Feed], *, threads: int | None = None
) -> Artifact:
    """The artifact with its report's layers compared to ``reference`` on ``samples``."""
    from qcompiler.verify.layers import compare_layers

    found = compare_layers(reference, artifact, samples, threads=threads)
    layers = merge_layers(found.report_rows(), artifact.report.layers)
    report = dataclasses.replace(artifact.report, layers=layers)
    return dataclasses.replace(artifact, report=report)


def merge_layers(
    rows: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """One row per node with the keys of both; order of ``rows``, then what only ``others`` has."""
    merged = {row["node"]: dict(row) for row in rows}
    for row in others:
        merged.setdefault(row["node"], {}).update(row)
    return tuple(merged.values())

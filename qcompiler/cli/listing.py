"""Rows of ``qcompile passes``."""

from __future__ import annotations

import dataclasses
from typing import Any

from qcompiler.pipeline.registry import all_passes

__all__ = ["pass_rows"]


def pass_rows() -> list[dict[str, Any]]:
    """One JSON-able row per installed pass, in pipeline order."""
    return [
        {
            "name": name,
            "phase": cls.phase.name.lower(),
            "exact": cls.exact,
            "needs": sorted(fact.value for fact in cls.needs),
            "gives": sorted(fact.value for fact in cls.gives),
            "options": {field.name: field.default for field in dataclasses.fields(cls)},
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
        }
        for name, cls in all_passes().items()
    ]

"""Which keys of a recipe the user said, and which came from its base or are as by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

__all__ = ["keep_said", "said_keys"]


def keep_said(model: pydantic.BaseModel, given: Mapping[str, Any]) -> None:
    """Let only the keys of ``given``, in all its tables, count as set in ``model``."""
    model.model_fields_set.intersection_update(given)
    for key in model.model_fields_set:
        table = getattr(model, key)
        if isinstance(table, pydantic.BaseModel) and isinstance(given[key], Mapping):
            keep_said(table, given[key])


def said_keys(model: pydantic.BaseModel, table: str = "") -> Iterator[str]:
    """The keys that are set and not as by default, those of tables as ``table.key``."""
    for key in sorted(model.model_fields_set):
        value, default = getattr(model, key), type(model).model_fields[key].get_default()
        if isinstance(default, pydantic.BaseModel):
            yield from said_keys(value, f"{table}{key}.")
        elif value != default:
            yield table + key

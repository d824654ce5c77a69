"""The session options that an artifact needs; they travel with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["Level", "SessionSettings"]

Level = Literal["disable", "basic", "extended", "layout", "all"]


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSettings:
    """Options of an ``onnxruntime.InferenceSession``.

    Attributes:
        level: Graph optimization level.
        entries: ``SessionOptions.add_session_config_entry`` pairs.
    """

    level: Level = "all"
    entries: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {"level": self.level, "entries": dict(self.entries)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionSettings:
        """Read what :meth:`to_dict` wrote."""
        return cls(data["level"], dict(data["entries"]))

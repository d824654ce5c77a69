"""The results on disk: parts measured later join those measured before."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from qcompiler_models.real import RealModel

__all__ = ["Results"]

_SAME = ("cpu", "isa", "cores", "threads")


class Results:
    """``results.json`` and ``results.md`` of one folder.

    Attributes:
        data: ``machine``, ``settings``, ``models`` (name -> ``contestants`` -> part), and
            ``experiments``.
    """

    def __init__(
        self, folder: pathlib.Path, machine: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        """Read what is there, unless it was measured on another machine."""
        self.folder = folder
        path = folder / "results.json"
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if old and any(old["machine"].get(key) != machine[key] for key in _SAME):
            print(f"{path} is of another machine or thread count: it is measured anew", flush=True)
            old = {}
        self.data = {
            "machine": dict(machine),
            "settings": dict(settings),
            "models": old.get("models", {}),
            "experiments": old.get("experiments", {}),
        }

    def put(self, model: RealModel, contestant: str, part: str, value: Mapping[str, Any]) -> None:
        """Keep one part of one contestant; what was there is replaced."""
        entry = self.data["models"].setdefault(
            model.name, {"description": model.description, "contestants": {}}
        )
        entry["contestants"].setdefault(contestant, {})[part] = dict(value)

    def put_experiment(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep one experiment."""
        self.data["experiments"][name] = dict(value)

    def save(self) -> None:
        """Write both files."""
        from suite.tables import markdown

        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.data, indent=1)
        (self.folder / "results.json").write_text(text + "\n", encoding="utf-8")
        (self.folder / "results.md").write_text(markdown(self.data), encoding="utf-8")

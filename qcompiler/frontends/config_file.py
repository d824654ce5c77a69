"""What ``config.json`` of a transformers folder says of the model's class."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from qcompiler.diagnostics import Code, Diagnostic

__all__ = ["class_assumed", "said_classes", "said_config"]


def said_config(folder: pathlib.Path) -> Mapping[str, Any]:
    """What ``config.json`` says; nothing where it cannot be read."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # who loads the folder says what is wrong with it
    return said if isinstance(said, dict) else {}


def said_classes(folder: pathlib.Path) -> list[str]:
    """The classes that ``architectures`` names; nothing where it is missing or no list."""
    names = said_config(folder).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def class_assumed(folder: pathlib.Path, taken: str) -> Diagnostic:
    """What is told when the file names no class that could be taken.

    Args:
        folder: Of the model.
        taken: Name of the class that the weights are taken for.
    """
    names = said_classes(folder)
    found = f"names {names[0]!r}, which transformers does not have" if names else "names no class"
    return Diagnostic(
        Code.CLASS_ASSUMED,
        str(folder),
        f"architectures of config.json {found}: the weights are taken for those of {taken}",
        f'for another class write "architectures": ["NAME"] into config.json, for {taken} its name',
    )

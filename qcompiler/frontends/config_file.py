"""The JSON files of a transformers folder, ``config.json`` above all."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from qcompiler.diagnostics import Code, Diagnostic, QcError

__all__ = ["class_assumed", "read_table", "said_classes", "said_config"]


def read_table(path: pathlib.Path) -> Mapping[str, Any]:
    """The table in a JSON file.

    Raises:
        QcError: QC707, it cannot be read, or holds something else.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QcError(
            Code.UNSUPPORTED_INPUT, str(path), f"cannot be read: {error}", "copy the file again"
        ) from error
    if not isinstance(said, dict):
        raise QcError(Code.UNSUPPORTED_INPUT, str(path), "is no JSON table", "copy the file again")
    return said


def said_config(folder: pathlib.Path) -> Mapping[str, Any]:
    """What ``config.json`` says; nothing where it cannot be read."""
    try:
        return read_table(folder / "config.json")
    except QcError:
        return {}  # who loads the folder says what is wrong with it


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

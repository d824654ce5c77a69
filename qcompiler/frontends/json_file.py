"""The JSON tables beside a checkpoint's weights."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from qcompiler.diagnostics import Code, QcError

__all__ = ["read_table"]


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

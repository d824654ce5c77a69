"""What other packages bring by entry point."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from qcompiler.diagnostics import Code, QcError

__all__ = ["load_plugin"]


def load_plugin(point: importlib.metadata.EntryPoint, code: Code) -> Any:
    """The object that an entry point names.

    Raises:
        QcError: ``code``, the package cannot be imported or lacks the object.
    """
    try:
        return point.load()
    except Exception as error:  # the package's own code runs here
        package = point.dist.name if point.dist is not None else point.value
        raise QcError(
            code,
            point.value,
            f"the package {package} cannot be used: {type(error).__name__}: {error}",
            f"mend {package}, or uninstall it",
        ) from error

"""qcompiler: a graph-transformation quantization compiler. Torch or ONNX in, proven ONNX out.

>>> from qcompiler import qcompile
>>> artifact = qcompile("model.onnx", target="cpu")   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.artifact import Artifact
    from qcompiler.diagnostics import Code, Diagnostic, QcError
    from qcompiler.driver import qcompile
    from qcompiler.plan import Plan
    from qcompiler.recipe import Recipe
    from qcompiler.targets.registry import load_target
    from qcompiler.targets.schema import Target

__all__ = [
    "Artifact",
    "Code",
    "Diagnostic",
    "Plan",
    "QcError",
    "Recipe",
    "Target",
    "load_target",
    "qcompile",
]

_HOME = {
    "Artifact": "qcompiler.artifact",
    "Code": "qcompiler.diagnostics",
    "Diagnostic": "qcompiler.diagnostics",
    "Plan": "qcompiler.plan",
    "QcError": "qcompiler.diagnostics",
    "Recipe": "qcompiler.recipe",
    "Target": "qcompiler.targets.schema",
    "load_target": "qcompiler.targets.registry",
    "qcompile": "qcompiler.driver",
}


def __getattr__(name: str) -> Any:  # PEP 562: the first use of a name imports its module
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("qcompiler-onnx")
    if name not in _HOME:
        raise AttributeError(f"module 'qcompiler' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])

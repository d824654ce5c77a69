"""Doors of the compiler: whatever the user has becomes one ``onnx_ir.Model``."""

from qcompiler.frontends.door import open_model
from qcompiler.frontends.opened import Opened

__all__ = ["Opened", "open_model"]

"""Compiled models in the formats of other tools."""

from qcompiler.export.checkpoint import FORMATS, Exported, export_checkpoint
from qcompiler.export.formats import Format

__all__ = ["FORMATS", "Exported", "Format", "export_checkpoint"]

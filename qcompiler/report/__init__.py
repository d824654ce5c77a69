"""What a compile did, as data (``model``) and as terminal tables (``tables``)."""

from qcompiler.report.model import Report

__all__ = ["Report"]

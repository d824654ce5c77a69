"""The built-in passes, found through the entry-point group ``qcompiler.passes`` like any other's.

``PASSES`` is the default pipeline: the order within a phase is the order here.
"""

from __future__ import annotations

from qcompiler.pipeline.contract import Pass

__all__ = ["PASSES"]

PASSES: tuple[type[Pass], ...] = ()

"""``python -m qcompiler``: the command ``qcompile`` where the console script is not on the path."""

from __future__ import annotations

from qcompiler.cli import main

main()

"""The command ``qcompile``: the words of the Python API on the command line."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script."""
    from qcompiler.cli.app import run

    run()

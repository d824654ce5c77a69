"""Honest latency: a process each, interleaved rounds, ratios of medians with their spread."""

from qcompiler.bench.compare import Candidate, Comparison, compare

__all__ = ["Candidate", "Comparison", "compare"]

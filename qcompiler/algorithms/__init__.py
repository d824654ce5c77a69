"""Algorithms that round weights: pure functions of arrays."""

"""The benchmark: contestants, parts to measure, results and their tables."""

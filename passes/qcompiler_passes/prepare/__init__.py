"""PREPARE passes: exact rewrites that make the graph easier to quantize."""

"""Exact clean-ups and fusions: the same function in fewer and more canonical operators."""

"""Views of a graph that are thrown away after use: symbolic shapes, cuts, repeated blocks."""

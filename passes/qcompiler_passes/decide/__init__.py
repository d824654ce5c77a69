"""Passes that choose: they fill the plan and never edit the graph."""

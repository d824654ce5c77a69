"""The pattern engine: what a pattern is (``match``), how rules are applied (``rule``)."""

from qcompiler.patterns.match import Match, Operators, Term, Var, maybe, one_of, scalar_of
from qcompiler.patterns.rule import Applied, NearMiss, Rule, apply_rules

__all__ = [
    "Applied",
    "Match",
    "NearMiss",
    "Operators",
    "Rule",
    "Term",
    "Var",
    "apply_rules",
    "maybe",
    "one_of",
    "scalar_of",
]

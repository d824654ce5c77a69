"""The pattern engine: patterns (``terms``), where they match (``match``), rules (``rule``)."""

from qcompiler.patterns.match import Match, scalar_of
from qcompiler.patterns.rule import Applied, NearMiss, Rule, apply_rules
from qcompiler.patterns.terms import Operators, Term, Var, maybe, one_of

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

"""What the compiler tells its user: coded diagnostics, and the one exception that carries them.

Every decision that a user might ask "why?" about is a :class:`Diagnostic` with one of the codes
of :mod:`qcompiler.codes`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from qcompiler.codes import Code, Severity

__all__ = ["Code", "Diagnostic", "QcError", "Severity", "nearest"]


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing the user may want to know, with its code and its numbers.

    Attributes:
        code: What kind of thing it is.
        where: The user's name for the place: node and module path, file, key of a recipe.
        message: What is so, with the numbers: lower case, no full stop.
        hint: What the user can do about it.
        values: The same numbers, for machines (JSON-able).
    """

    code: Code
    where: str
    message: str
    hint: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """The severity of the code."""
        return self.code.severity

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{self.code.id} {place}{self.message}{hint}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_dict` reads it back."""
        return {
            "code": self.code.id,
            "name": self.code.name.lower().replace("_", "-"),
            "severity": self.severity.name.lower(),
            "where": self.where,
            "message": self.message,
            "hint": self.hint,
            "values": dict(self.values),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Diagnostic:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            Code.from_id(data["code"]),
            data["where"],
            data["message"],
            data.get("hint", ""),
            dict(data.get("values", {})),
        )


class QcError(Exception):
    """What a user can cause and mend. Holds one :class:`Diagnostic`."""

    def __init__(self, code: Code, where: str, message: str, hint: str = "", **values: Any) -> None:
        self.diagnostic = Diagnostic(code, where, message, hint, values)
        super().__init__(str(self.diagnostic))

    @property
    def code(self) -> Code:
        """The diagnostic's code."""
        return self.diagnostic.code


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A hint naming the known words nearest to ``name``, or all of them when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}" if known else "there is none"

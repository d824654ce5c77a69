"""Which values share quantization parameters, and which of them owns the parameters.

Carriers keep parameters from input to output; unifiers give all their inputs and the output the
same. The owner is the value that is calibrated, so its range must cover the ranges of the others:
what runs through carriers comes from one source, and the output of a Concat holds all its inputs.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

__all__ = ["Mover", "Sharing", "share"]


@dataclasses.dataclass(frozen=True, slots=True)
class Mover:
    """A carrier or unifier in low precision.

    Attributes:
        name: Of its node.
        reads: Values that it moves.
        writes: Values that hold them.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Sharing:
    """Who owns the parameters of whom.

    Attributes:
        owners: Owner by value, for values that do not own their parameters.
        conflict: A mover that must be float before all values have an owner, or None.
    """

    owners: dict[str, str]
    conflict: str | None = None


def share(movers: Sequence[Mover]) -> Sharing:
    """Find an owner for each class of values that movers tie together.

    Args:
        movers: In graph order.
    """
    owners: dict[str, str] = {}
    for group in _groups(movers):
        written = {value for mover in group for value in mover.writes}
        sources = list(dict.fromkeys(v for mover in group for v in mover.reads if v not in written))
        unifiers = [mover for mover in group if len(mover.reads) > 1]
        candidates = [mover.writes[0] for mover in reversed(unifiers)] or sources
        owner = next((v for v in candidates if _covers(v, sources, group)), None)
        if owner is None:
            return Sharing({}, unifiers[-1].name)
        members = dict.fromkeys([*sources, *(v for mover in group for v in mover.writes)])
        owners.update((value, owner) for value in members if value != owner)
    return Sharing(owners)


def _groups(movers: Sequence[Mover]) -> list[list[Mover]]:
    parent: dict[str, str] = {}

    def root(value: str) -> str:
        while parent.setdefault(value, value) != value:
            parent[value] = value = parent[parent[value]]
        return value

    for mover in movers:
        first, *others = (*mover.reads, *mover.writes)
        for value in others:
            parent[root(value)] = root(first)
    groups: dict[str, list[Mover]] = collections.defaultdict(list)
    for mover in movers:
        groups[root(mover.reads[0])].append(mover)
    return list(groups.values())


def _covers(owner: str, sources: Sequence[str], group: Sequence[Mover]) -> bool:
    """Whether every source flows into the owner (or is it)."""
    covered = {owner}
    for mover in reversed(group):  # graph order: a writer stands before its readers
        if covered.intersection(mover.writes):
            covered.update(mover.reads)
    return covered.issuperset(sources)

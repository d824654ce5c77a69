"""A compile leaves the collector of garbage as it was."""

from __future__ import annotations

import gc
import weakref

import pytest

from qcompiler.garbage import own_garbage


class Cycle:
    def __init__(self) -> None:
        self.me = self


def looked_at(thing: object) -> bool:
    """Whether a collection looks at `thing`: `gc.get_objects` leaves out what is set aside.

    The number of objects set aside would not do: it falls when any of them is freed.
    """
    return any(each is thing for each in gc.get_objects())


def test_what_is_made_inside_is_collected_and_what_was_there_comes_back() -> None:
    there = Cycle()
    with own_garbage():
        assert not looked_at(there)
        made = weakref.ref(Cycle())
        gc.collect()
        assert made() is None
    assert looked_at(there)


def test_objects_come_back_after_an_error() -> None:
    there = Cycle()
    with pytest.raises(ZeroDivisionError), own_garbage():
        1 / 0  # noqa: B018
    assert looked_at(there)


def test_what_somebody_else_set_aside_stays_aside() -> None:
    there = Cycle()
    gc.freeze()
    try:
        with own_garbage():
            later = Cycle()
            assert looked_at(later)
        assert looked_at(later)
        assert not looked_at(there)
    finally:
        gc.unfreeze()

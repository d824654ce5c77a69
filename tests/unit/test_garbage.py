"""A compile leaves the collector of garbage as it was."""

from __future__ import annotations

import gc
import weakref

import pytest

from qcompiler.garbage import own_garbage


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_what_is_made_inside_is_collected_and_what_was_there_comes_back() -> None:
    before = gc.get_freeze_count()
    with own_garbage():
        assert gc.get_freeze_count() > before
        made = weakref.ref(Cycle())
        gc.collect()
        assert made() is None
    assert gc.get_freeze_count() == before


def test_objects_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), own_garbage():
        1 / 0  # noqa: B018
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_set_aside_stays_aside() -> None:
    gc.freeze()
    try:
        aside = gc.get_freeze_count()
        with own_garbage():
            assert gc.get_freeze_count() == aside
        assert gc.get_freeze_count() == aside
    finally:
        gc.unfreeze()

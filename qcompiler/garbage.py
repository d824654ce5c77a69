"""Collections of garbage while a model is compiled."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["own_garbage"]


@contextlib.contextmanager
def own_garbage() -> Iterator[None]:
    """Collect what was made inside, and do not look at what was there before.

    A compile makes objects enough to set off many collections, and each would walk over all that
    the process has imported: a twentieth of the time of a small model.
    """
    if gc.get_freeze_count():  # somebody has set things aside, and decides when they come back
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

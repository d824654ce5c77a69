"""Loading by transformers without its own progress bars, which know nothing of ``--quiet``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["without_bars"]


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """No bars of transformers inside; after it they are as they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

"""Memory that is freed and wanted again at once."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

__all__ = ["reused_memory"]

# Parameters of mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 << 20  # block that glibc lets a heap hold; to where it moves its own thresholds
_KEPT = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 2**31 - 1))
_USUAL = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 2 * _LARGEST))

_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def reused_memory() -> Iterator[None]:
    """Keep what is freed for what is allocated next; give it back to the system at the end.

    glibc gives the end of its heap back as soon as it is free. Training allocates the same blocks
    in each step, and the system has to find and clear their pages each time (measured in a virtual
    machine: 5,000 to 10,000 pages, 2 % of a step of AutoRound). Blocks of more than 32 MiB are
    given back as ever. May be nested, and entered by several threads. Changes nothing where the C
    library is another one.
    """
    global _inside
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        _inside += 1
        _set(library, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(library, _USUAL)
                library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of that name
        return None
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in wanted) else None


def _set(library: ctypes.CDLL, parameters: tuple[tuple[int, int], ...]) -> None:
    for parameter, value in parameters:
        library.mallopt(parameter, value)

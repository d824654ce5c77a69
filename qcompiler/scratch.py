"""Temporary folders that a killed process leaves behind only until the next one makes some.

Each holds a file that its owner keeps locked as long as it lives; the system lets go of the lock
however the owner ends. Who makes a folder removes those beside it that nobody holds.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import tempfile
from types import TracebackType
from typing import IO

__all__ = ["Scratch", "clear_stale"]

PREFIX = "qcompiler-"
_LOCK = ".held"


class Scratch:
    """A folder that goes with this object, with the process, or with the next Scratch beside it.

    Attributes:
        folder: Its path.
    """

    def __init__(self, place: str | os.PathLike[str] | None = None, prefix: str = PREFIX) -> None:
        """Make it, and remove what dead owners left.

        Args:
            place: Where; None is the system's folder for temporary files.
            prefix: Of its name; only folders with the same prefix are removed.

        Raises:
            OSError: The place cannot be written.
        """
        place = place or tempfile.gettempdir()
        clear_stale(place, prefix)
        while True:
            self._temporary = tempfile.TemporaryDirectory(prefix=prefix, dir=place)
            self.folder = pathlib.Path(self._temporary.name)
            lock = self.folder / _LOCK
            self._held = lock.open("w")
            if _take(self._held) and lock.exists():
                return
            self._held.close()  # another process took it for a dead one's before it was locked

    def remove(self) -> None:
        """Remove the folder."""
        self._held.close()
        self._temporary.cleanup()

    def __enter__(self) -> pathlib.Path:
        return self.folder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def clear_stale(place: str | os.PathLike[str], prefix: str = PREFIX) -> None:
    """Remove the folders of dead owners; what cannot be looked into stays, and on Windows all."""
    if sys.platform == "win32":
        return
    for lock in pathlib.Path(place).glob(f"{prefix}*/{_LOCK}"):
        try:
            with lock.open("r+") as held:
                if _take(held):
                    shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue


def _take(held: IO[str]) -> bool:
    """Lock the file; False when another process holds it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

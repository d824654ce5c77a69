"""What crosses from one stage to the next: in memory up to a limit, then in files."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError
from qcompiler.scratch import Scratch

__all__ = ["Spool"]

_Array = npt.NDArray[Any]


class Spool:
    """Arrays by name and sample.

    Attributes:
        spilled: Bytes written to files so far.
    """

    def __init__(self, limit: int, folder: pathlib.Path | None = None) -> None:
        """Start empty.

        Args:
            limit: Bytes to hold in memory; what comes then goes to files.
            folder: Where to make the temporary folder of the files; None is the system's.
        """
        self.spilled = 0
        self._limit = limit
        self._held = 0
        self._place = folder
        self._scratch: Scratch | None = None
        self._arrays: dict[str, dict[int, _Array | pathlib.Path]] = {}
        self._forms: dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]] = {}

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._arrays.clear()
        if self._scratch is not None:
            self._scratch.remove()

    def form(self, name: str) -> tuple[np.dtype[Any], tuple[int | None, ...]]:
        """Type and shape of the arrays of a name; None for sizes in which they differ."""
        return self._forms[name]

    def put(self, name: str, sample: int, array: _Array) -> None:
        """Keep an array until :meth:`drop`.

        Raises:
            QcError: QC706, the disk is full or cannot be written.
        """
        items = self._arrays.setdefault(name, {})
        sizes: tuple[int | None, ...] = array.shape
        if name in self._forms:
            before = self._forms[name][1]
            sizes = tuple(a if a == b else None for a, b in zip(sizes, before, strict=True))
        self._forms[name] = (array.dtype, sizes)
        if self._held + array.nbytes <= self._limit or not array.nbytes:
            self._held += array.nbytes
            items[sample] = array
            return
        items[sample] = self._write(array)
        self.spilled += array.nbytes

    def has(self, name: str) -> bool:
        """Whether there are arrays of the name."""
        return name in self._arrays

    def get(self, name: str, sample: int) -> _Array:
        """The array, mapped from its file where it is in one."""
        found = self._arrays[name][sample]
        if isinstance(found, pathlib.Path):
            return np.asarray(np.load(found, mmap_mode="r"))
        return found

    def drop(self, name: str) -> None:
        """Forget the arrays of a name."""
        for found in self._arrays.pop(name, {}).values():
            if isinstance(found, pathlib.Path):
                found.unlink()
            else:
                self._held -= found.nbytes

    def _write(self, array: _Array) -> pathlib.Path:
        try:
            if self._scratch is None:
                self._scratch = Scratch(self._place)
            number = self.spilled  # grows with each file: a name of its own
            path = self._scratch.folder / f"{number}.npy"
            np.save(path, array)
        except OSError as error:
            raise QcError(
                Code.NOT_WRITABLE,
                str(self._place or tempfile.gettempdir()),
                f"activations cannot be written: {error.strerror or error}",
                "free disk space, set TMPDIR to a larger disk, or give fewer samples",
            ) from error
        return path

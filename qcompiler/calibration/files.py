"""Feeds from .npz and .npy files, read lazily and without pickle."""

from __future__ import annotations

import functools
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError

if TYPE_CHECKING:
    from qcompiler.runtime.inputs import InputSpec

__all__ = ["open_file"]

Item = dict[str, npt.NDArray[Any]]
Opened = tuple[Callable[[], Iterator[Any]], int | None]

# Rows of a long array that are run at once: enough to keep two cores busy, little memory.
_ROWS = 8

_SUFFIXES = (".npz", ".npy")


def open_file(path: pathlib.Path, specs: Sequence[InputSpec]) -> Opened:
    """What begins a pass over a file or folder, and how many feeds a pass has.

    - ``.npz`` whose keys are the input names: one feed, or, when the arrays have one axis more
      than the inputs, a feed per index of that axis; a batch of more than eight samples is cut
      into feeds of eight where the inputs' first dimension is free.
    - ``.npy``: the same for a model of one input; the file is memory-mapped.
    - a folder: its ``.npz`` and ``.npy`` files in the order of their names.

    Raises:
        QcError: QC208, there is no such file, its kind is unknown, or it cannot be read.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a whole text, where the name of a file is wanted
        raise QcError(
            Code.CALIBRATION_SOURCE,
            "calibration",
            f"found a string of {len(str(path))} characters, which is no path: {error.strerror}",
            "give texts as a list of strings, or the path of a file",
        ) from None
    if is_folder:
        files = sorted(item for item in path.iterdir() if item.suffix.lower() in _SUFFIXES)
        if not files:
            raise _error(path, "the folder has no .npz or .npy file")
        return functools.partial(_folder, files, specs), None
    if not path.is_file():
        raise _error(path, "there is no such file or folder")
    if path.suffix.lower() not in _SUFFIXES:
        raise _error(path, f"found {path.suffix or 'no'!r} as suffix")
    arrays = _read(path, specs)
    return (lambda: _split(_read(path, specs), specs)), sum(1 for _ in _slices(arrays, specs))


def _folder(files: Sequence[pathlib.Path], specs: Sequence[InputSpec]) -> Iterator[Item]:
    for file in files:
        yield from _split(_read(file, specs), specs)


def _read(path: pathlib.Path, specs: Sequence[InputSpec]) -> Item:
    try:
        if path.suffix.lower() == ".npy":
            if len(specs) != 1:
                names = ", ".join(spec.name for spec in specs)
                raise _error(path, f"one array for {len(specs)} inputs ({names})")
            return {specs[0].name: np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            if len(specs) == 1 and archive.files == ["arr_0"]:
                return {specs[0].name: archive["arr_0"]}
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _error(path, f"cannot be read: {error}") from error


def _split(arrays: Item, specs: Sequence[InputSpec]) -> Iterator[Item]:
    for part in _slices(arrays, specs):
        yield {name: array[part] for name, array in arrays.items()} if part is not None else arrays


def _slices(arrays: Item, specs: Sequence[InputSpec]) -> Iterator[int | slice | None]:
    """How to cut arrays that hold many feeds: an index, a slice of rows, or None for whole."""
    ranks = {spec.name: spec for spec in specs if spec.rank_known}
    known = [(ranks[name], array) for name, array in arrays.items() if name in ranks]
    lengths = {len(array) for _, array in known if array.ndim}
    if not known or len(lengths) != 1 or len(known) != len(arrays):
        yield None  # wrong names and shapes are told by the check of the feed
        return
    length = lengths.pop()
    if all(array.ndim == len(spec.shape) + 1 for spec, array in known):
        yield from range(length)
        return
    batched = all(
        array.ndim == len(spec.shape) > 0 and not isinstance(spec.shape[0], int)
        for spec, array in known
    )
    fixed_one = all(
        array.ndim == len(spec.shape) and spec.shape[:1] == (1,) for spec, array in known
    )
    if fixed_one:
        yield from (slice(start, start + 1) for start in range(length))
    elif batched and length:
        yield from (slice(start, start + _ROWS) for start in range(0, length, _ROWS))
    else:
        yield None


def _error(path: pathlib.Path, message: str) -> QcError:
    return QcError(
        Code.CALIBRATION_SOURCE,
        str(path),
        message,
        "wanted .npz with the input names as keys, .npy for one input, or a folder of them",
    )

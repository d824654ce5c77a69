"""Whether a calibration source holds text or tokens, and what it holds one by one."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qcompiler.calibration.feeds import guarded
from qcompiler.diagnostics import Code, QcError
from qcompiler.runtime.inputs import InputSpec

__all__ = ["COLUMNS", "FORMS", "is_text", "items_of", "look_at"]

COLUMNS = ("text", "content", "sentence", "prompt")
FORMS = (
    "give strings, a .txt, .md, .json or .jsonl file, tokens (lists of numbers, an array or .npy "
    "file [n, length]), or a data set with a column 'text' or 'input_ids'"
)
_FILES = (".txt", ".md", ".json", ".jsonl")


def look_at(calibration: Any) -> tuple[Any, Any]:
    """A source, and what :func:`is_text` can judge it by: a generator cannot be read twice.

    Args:
        calibration: As the user gave it.

    Returns:
        The source with nothing lost; and itself, or the first item, in a list, of a generator or of
        a function that begins one.

    Raises:
        QcError: QC208, the generator raised.
    """
    if isinstance(calibration, Iterator):
        items = guarded(calibration)
        first = list(itertools.islice(items, 1))
        return itertools.chain(first, items), first
    if _begins(calibration):
        try:
            return calibration, list(itertools.islice(calibration(), 1))
        except Exception:  # who opens it as feeds says what is wrong with it
            return calibration, []
    return calibration, calibration


def _begins(calibration: Any) -> bool:
    """Whether it is a function that is called for each pass."""
    return callable(calibration) and not isinstance(calibration, Iterable)


def is_text(calibration: Any, specs: Sequence[InputSpec]) -> bool:
    """Whether the source holds text or tokens alone, for a model that takes tokens."""
    names = {spec.name for spec in specs}
    if "input_ids" not in names:
        return False
    if isinstance(calibration, str | os.PathLike):
        suffix = pathlib.Path(calibration).suffix.lower()
        return suffix in _FILES or (suffix == ".npy" and len(names) > 1)
    if isinstance(calibration, np.ndarray):
        return calibration.ndim == 2 and calibration.dtype.kind in "iu"
    if isinstance(calibration, Mapping | Iterator) or not isinstance(calibration, Iterable):
        return False
    first = next(iter(calibration), None)
    if isinstance(first, Mapping):
        has_text = any(isinstance(first.get(column), str) for column in COLUMNS)
        return has_text or ("input_ids" in first and not names <= set(first))
    return isinstance(first, str) or (len(names) > 1 and _holds_tokens(first))


def _holds_tokens(item: Any) -> bool:
    """Whether an item is an array, or lists, of whole numbers."""
    while isinstance(item, list) and item:
        item = item[0]
    if isinstance(item, int | np.integer):
        return True
    is_array = hasattr(item, "dtype") and hasattr(item, "shape")
    return is_array and "int" in str(item.dtype) and len(item.shape) in (1, 2)


def items_of(calibration: Any) -> Iterator[Any]:
    """What a source holds, one by one: strings, tokens, or objects that hold either.

    Raises:
        QcError: QC208, the file cannot be read, or the generator raised.
    """
    if not isinstance(calibration, str | os.PathLike):
        begun = calibration() if _begins(calibration) else calibration
        yield from guarded(iter(begun))
        return
    path = pathlib.Path(calibration)
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            yield from array if array.ndim == 2 else [array]
            return
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            yield from found if isinstance(found, list) else [found]
        elif path.suffix.lower() == ".jsonl":
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        else:
            yield text
    except (OSError, ValueError) as error:
        raise QcError(
            Code.CALIBRATION_SOURCE, str(path), f"cannot be read: {error}", FORMS
        ) from error

"""Weights of a CTranslate2 model file: named arrays, read with nothing but ``struct`` and numpy.

The file, little endian: the version of the format; the name of the model's specification and its
revision; the number of variables, and of each its name, rank, shape, type, size in bytes and
values; the number of aliases, and of each its name and the variable it stands for. A string is
its length in 16 bits and its bytes, a zero at the end included.
"""

from __future__ import annotations

import math
import pathlib
import struct
from typing import Any, Final

import numpy as np

from qcompiler_models.assets import AssetError
from qcompiler_models.real import Array

__all__ = ["read_variables"]

_VERSION: Final = 6
_HIGHEST_RANK: Final = 8
_TYPES: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}


class _Reader:
    """A position in bytes that never leaves them."""

    def __init__(self, content: bytes, source: str) -> None:
        self._content = memoryview(content)
        self._source = source
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def error(self, message: str) -> AssetError:
        return AssetError(f"{self._source}: at byte {self._at}: {message}")

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise self.error(f"{what} needs {size} bytes, {self.left} are left")
        taken = self._content[self._at : self._at + size]
        self._at += size
        return taken

    def number(self, code: str, what: str) -> int:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))
        return int(value)

    def string(self, what: str) -> str:
        raw = bytes(self.take(self.number("H", f"the length of {what}"), what))
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not text: {error}") from error


def read_variables(path: pathlib.Path, specification: str) -> dict[str, Array]:
    """The variables of a model file by name; an alias gives the very array it stands for.

    Args:
        path: ``model.bin`` of a CTranslate2 model of format 6.
        specification: What kind of model it must be, as ``WhisperSpec``.

    Returns:
        Read-only arrays in the types they are stored in.

    Raises:
        AssetError: If the file is of another kind, ends too early or late, or contradicts itself.
    """
    reader = _Reader(path.read_bytes(), str(path))
    version = reader.number("I", "the version")
    if version != _VERSION:
        raise reader.error(f"format {version} is not known; wanted {_VERSION}")
    found = reader.string("the specification")
    if found != specification:
        raise reader.error(f"it holds a {found!r}; wanted {specification!r}")
    reader.number("I", "the revision")
    variables: dict[str, Array] = {}
    for _ in range(reader.number("I", "the number of variables")):
        name = reader.string("the name of a variable")
        if name in variables:
            raise reader.error(f"variable {name!r} comes twice")
        variables[name] = _variable(reader, name)
    for _ in range(reader.number("I", "the number of aliases")):
        alias, name = reader.string("an alias"), reader.string("what an alias stands for")
        if alias in variables or name not in variables:
            raise reader.error(f"alias {alias!r} of {name!r}: one name is taken or not there")
        variables[alias] = variables[name]
    if reader.left:
        raise reader.error(f"{reader.left} bytes follow the last alias")
    return variables


def _variable(reader: _Reader, name: str) -> Array:
    rank = reader.number("B", f"the rank of {name!r}")
    if rank > _HIGHEST_RANK:
        raise reader.error(f"variable {name!r} has rank {rank}; at most {_HIGHEST_RANK} is known")
    shape = tuple(reader.number("I", f"the shape of {name!r}") for _ in range(rank))
    code = reader.number("B", f"the type of {name!r}")
    size = reader.number("I", f"the size of {name!r}")
    dtype = _TYPES.get(code)
    if dtype is None:
        raise reader.error(f"variable {name!r} has type {code}; known: {sorted(_TYPES)}")
    wanted = math.prod(shape) * dtype.itemsize
    if size != wanted:
        raise reader.error(f"variable {name!r}, {dtype} {shape}, has {size} bytes, not {wanted}")
    return np.frombuffer(reader.take(size, f"variable {name!r}"), dtype).reshape(shape)

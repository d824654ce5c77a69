"""Results in a folder: a compile that was cut off finds there what it had done."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec
from qcompiler.scratch import Scratch
from qcompiler.stages.cut import Site

__all__ = ["ArrayStore", "StoredWeights", "WeightStore"]

_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class ArrayStore:
    """One file of arrays per name and key.

    The key is a hash of everything that determined the numbers, so a file is right or absent. A
    file appears under its name when it is complete.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Open or make the folder.

        Args:
            folder: Where; None is a temporary one that goes with this object, or, when the process
                is killed, with the next compile.

        Raises:
            QcError: QC706, it cannot be made.
        """
        self._scratch = None if folder else Scratch()
        self.folder = pathlib.Path(folder) if folder else self._scratch.folder  # type: ignore[union-attr]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refused(error) from error

    def has(self, name: str, key: str) -> bool:
        """Whether the file is there."""
        return self._path(name, key).is_file()

    def get(self, name: str, key: str) -> dict[str, npt.NDArray[Any]]:
        """Its arrays.

        Raises:
            QcError: QC709, the file was damaged after it was written.
        """
        path = self._path(name, key)
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise QcError(
                Code.NOT_ARTIFACT,
                str(path),
                f"what was computed before cannot be read: {error}",
                "delete the file: it is computed again",
            ) from error

    def put(self, name: str, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep arrays.

        Raises:
            QcError: QC706, the disk is full or cannot be written.
        """
        path = self._path(name, key)
        try:
            handle, draft = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
        except OSError as error:
            raise self._refused(error) from error

    def _path(self, name: str, key: str) -> pathlib.Path:
        # names may be long, and may differ in characters that no file name takes
        plain = _PLAIN.sub("_", name)[-100:]
        digest = hashlib.sha256(f"{name} {key}".encode()).hexdigest()[:24]
        return self.folder / f"{plain}-{digest}.npz"

    def _refused(self, error: OSError) -> QcError:
        return QcError(
            Code.NOT_WRITABLE,
            str(self.folder),
            f"rounded weights cannot be written: {error.strerror or error}",
            "free disk space, or choose another folder with work=",
        )


class WeightStore:
    """Rounded weights by site and key, as :class:`ArrayStore` keeps them."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """As :class:`ArrayStore`."""
        self._files = ArrayStore(folder)

    @property
    def folder(self) -> pathlib.Path:
        """Where the files are."""
        return self._files.folder

    def has(self, site: Site, key: str) -> bool:
        """Whether the weight is there."""
        return self._files.has(site[0], f"{site[1]} {key}")

    def get(self, site: Site, key: str) -> QTensor:
        """A weight.

        Raises:
            QcError: QC709, the file was damaged after it was written.
        """
        return _tensor(self._files.get(site[0], f"{site[1]} {key}"), "")

    def put(self, site: Site, key: str, tensor: QTensor) -> None:
        """Keep a weight.

        Raises:
            QcError: QC706, the disk is full or cannot be written.
        """
        self._files.put(site[0], f"{site[1]} {key}", _arrays(tensor, ""))


def _arrays(tensor: QTensor, prefix: str) -> dict[str, npt.NDArray[Any]]:
    """What a tensor consists of; no file format of numpy has 8-bit floats."""
    found: dict[str, npt.NDArray[Any]] = {
        f"{prefix}q": tensor.q.view(np.uint8) if tensor.spec.is_float8 else tensor.q,
        f"{prefix}scale": tensor.scale,
        f"{prefix}spec": np.asarray(str(tensor.spec)),
    }
    if tensor.zero_point is not None:
        found[f"{prefix}zero_point"] = tensor.zero_point
    if tensor.stored_scale is not None:
        found.update(_arrays(tensor.stored_scale, f"{prefix}scale."))
    return found


def _tensor(file: Mapping[str, npt.NDArray[Any]], prefix: str) -> QTensor:
    """The tensor that :func:`_arrays` took apart."""
    spec, q = QSpec.parse(str(file[f"{prefix}spec"])), file[f"{prefix}q"]
    return QTensor(
        q.view(spec.dtype.numpy()) if spec.is_float8 else q,
        file[f"{prefix}scale"],
        file.get(f"{prefix}zero_point"),
        spec,
        _tensor(file, f"{prefix}scale.") if spec.scales is not None else None,
    )


class StoredWeights(Mapping[Site, QTensor]):
    """Rounded weights by site, some in memory, the others read from the store when asked for."""

    def __init__(
        self, held: Mapping[Site, QTensor], store: WeightStore, keys: Mapping[Site, str]
    ) -> None:
        """Of both kinds.

        Args:
            held: The others; asked when one is wanted, for it may read from a store as well.
            store: Holds those of ``keys``.
            keys: Key of each.
        """
        self._held = held
        self._store = store
        self._keys = dict(keys)

    def __getitem__(self, site: Site) -> QTensor:
        """One weight."""
        if site in self._keys:
            return self._store.get(site, self._keys[site])
        return self._held[site]

    def __iter__(self) -> Iterator[Site]:
        """All sites."""
        yield from (site for site in self._held if site not in self._keys)
        yield from self._keys

    def __len__(self) -> int:
        return sum(1 for _ in self)

"""Where an artifact may be saved, and how its folder comes to be there: whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator

from qcompiler.diagnostics import Code, QcError
from qcompiler.frontends.opened import ENCODER
from qcompiler.scratch import clear_stale

__all__ = ["MANIFEST", "check_place", "lift", "staging_prefix", "swap"]

MANIFEST = "manifest.json"
_BESIDE = (MANIFEST, "report.json", "report.html")  # of an artifact, and not among its digests


def staging_prefix(final: pathlib.Path) -> str:
    """How the names of temporary folders for the artifact ``final`` begin."""
    return f".{final.name[:100]}.new."


def check_place(
    folder: str | os.PathLike[str], keep_out: Iterable[str | os.PathLike[str] | None] = ()
) -> pathlib.Path:
    """The real path of a folder that an artifact may be saved to; nothing is made there yet.

    What a killed compile left there half-written is removed. An artifact gives way; files that it
    does not list are somebody's.

    Args:
        folder: The place.
        keep_out: Folders that are going to be written to as well; None is none.

    Raises:
        QcError: QC706, it is a file, holds other files, is going to, or cannot be looked into.
    """
    if not isinstance(folder, str | os.PathLike):
        raise QcError(
            Code.NOT_WRITABLE,
            "output",
            f"found a {type(folder).__name__}, wanted a path",
            "give the path of an empty or new folder",
        )
    try:
        final = pathlib.Path(os.path.realpath(folder))
        in_the_way = final.exists() and not final.is_dir()  # a device, too
        others = [str(path) for path in keep_out if path is not None and _holds(final, path)]
        if final.is_dir():
            clear_stale(final, staging_prefix(final))
            others.extend(_strangers(final))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise QcError(
            Code.NOT_WRITABLE, str(folder), f"cannot be used: {reason}", "choose another folder"
        ) from error
    if in_the_way:
        raise QcError(
            Code.NOT_WRITABLE, str(folder), "is a file, wanted a folder", "choose another name"
        )
    if others:
        raise QcError(
            Code.NOT_WRITABLE,
            str(folder),
            f"holds other files than an artifact's: {others[0]}",
            "choose an empty or new folder",
        )
    return final


def _holds(folder: pathlib.Path, path: str | os.PathLike[str]) -> bool:
    return pathlib.Path(os.path.realpath(path)).is_relative_to(folder)


def _strangers(folder: pathlib.Path) -> Iterator[str]:
    """Files in the folder that are not of the artifact in it; all of them where there is none."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        own = {*_BESIDE, *(name.split("/")[0] for name in listed)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        own = set()
    for path in sorted(folder.iterdir()):
        if path.name == ENCODER and ENCODER in own:
            yield from (f"{ENCODER}/{name}" for name in _strangers(path))
        elif path.name not in own:
            yield path.name


def lift(staging: pathlib.Path, final: pathlib.Path) -> None:
    """Move the files of ``staging`` up into ``final``, the manifest last: without it there is none.

    An empty folder that is there already may be a mount point or somebody's working directory,
    which cannot be renamed.
    """
    names = sorted((path.name for path in staging.iterdir()), key=MANIFEST.__eq__)
    try:
        for name in names:
            (staging / name).replace(final / name)
    except BaseException:  # Ctrl-C, too
        for path in (final / name for name in names):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def swap(staging: pathlib.Path, final: pathlib.Path) -> None:
    """Rename ``staging`` to ``final``; what was there is put back when the rename fails."""
    if not final.exists():
        staging.rename(final)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=f".{final.name[:100]}.old.", dir=final.parent))
    try:
        final.rename(old / "was")
        staging.rename(final)
    except BaseException:  # Ctrl-C, too
        if not final.exists():
            (old / "was").rename(final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)

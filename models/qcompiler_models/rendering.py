"""Rendered text with known truth: single lines and pages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from qcompiler_models import text
from qcompiler_models.assets import Asset, fetch

if TYPE_CHECKING:
    from PIL import ImageFont

__all__ = ["Box", "Page", "Picture", "line_texts", "render_line", "render_page"]

Picture = npt.NDArray[np.uint8]  # [height, width, 3]

_FONT_PACKAGES = (
    Asset(
        kind="deb",
        name="fonts-dejavu-core",
        version="2.37-6",
        members=("usr/share/fonts/truetype/dejavu/*.ttf",),
        digest="419c6eb62d23e8d14da4e9290d91e957a777504b9abfbcbb852a030f03e815a9",
    ),
    Asset(
        kind="deb",
        name="fonts-liberation",
        version="1:1.07.4-11",
        members=("usr/share/fonts/truetype/liberation/*.ttf",),
        digest="815da8f325181efb4383572990565c059b73558d39fe2938f0667fc1d6a05352",
    ),
)
_LONGEST_LINE = 36  # characters


class Box(NamedTuple):
    """A rectangle in pixels; ``right`` and ``bottom`` are the first that are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Pixels inside; 0 for a box turned inside out."""
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    def iou(self, other: Box) -> float:
        """Intersection over union."""
        shared = Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).area
        return shared / max(1, self.area + other.area - shared)


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A picture of several lines, with the text and the box of each, from top to bottom."""

    picture: Picture
    texts: tuple[str, ...]
    boxes: tuple[Box, ...]


@functools.cache
def _fonts() -> tuple[str, ...]:
    files = [file for package in _FONT_PACKAGES for file in fetch(package).rglob("*.ttf")]
    return tuple(str(file) for file in sorted(files, key=lambda file: file.name))


@functools.cache
def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(
        _fonts()[index],
        size,
        layout_engine=ImageFont.Layout.BASIC,  # the same with any libraqm
    )


def line_texts(novel: str, count: int, seed: int) -> list[str]:
    """Texts of single lines: beginnings of sentences, and every fourth a line of an invoice."""
    rng = np.random.default_rng(seed)
    sentences = text.sentences(novel)
    chosen = rng.choice(len(sentences), size=count, replace=False)
    return [
        _invoice_line(rng) if i % 4 == 3 else _beginning(sentences[row])
        for i, row in enumerate(chosen)
    ]


def _beginning(sentence: str) -> str:
    plain = sentence.replace("_", "").replace("--", " - ")  # no italics in plain text
    return plain[: _LONGEST_LINE + 1].rsplit(" ", 1)[0].strip()


def _invoice_line(rng: np.random.Generator) -> str:
    number, cents = rng.integers(10_000, 99_999), rng.integers(100, 999_999)
    year, month, day = rng.integers(1990, 2030), rng.integers(1, 13), rng.integers(1, 29)
    return f"No. {number} of {year}-{month:02}-{day:02}: ${cents / 100:.2f}"


def render_line(line: str, rng: np.random.Generator) -> Picture:
    """One line, cut out as a detector would, in a font, size, colour and noise drawn by ``rng``."""
    from PIL import Image, ImageDraw

    font = _font(int(rng.integers(len(_fonts()))), int(rng.integers(11, 40)))
    left, top, right, bottom = font.getbbox(line)
    margin = rng.integers(2, 8, size=2)
    size = (int(right - left + 2 * margin[0]), int(bottom - top + 2 * margin[1]))
    ink, paper = _colours(rng)
    picture = Image.new("RGB", size, paper)
    origin = (float(margin[0] - left), float(margin[1] - top))
    ImageDraw.Draw(picture).text(origin, line, fill=ink, font=font)
    return _age(np.asarray(picture), rng, blur=1.3, grain=30.0)


def render_page(lines: Sequence[str], rng: np.random.Generator, size: int = 640) -> Page:
    """As many of ``lines`` as fit on a square page; each keeps the words that fit in its width."""
    from PIL import Image, ImageDraw

    ink, paper = _colours(rng)
    picture = Image.new("RGB", (size, size), paper)
    draw = ImageDraw.Draw(picture)
    texts, boxes, y = [], [], int(rng.integers(10, 40))
    for line in lines:
        font = _font(int(rng.integers(len(_fonts()))), int(rng.integers(14, 36)))
        x = int(rng.integers(10, 60))
        shown = line
        while font.getlength(shown) > size - 10 - x:
            shown = shown.rsplit(" ", 1)[0]
        box = Box(*(round(edge) for edge in draw.textbbox((x, y), shown, font=font)))
        if box.bottom > size - 10:
            break
        draw.text((x, y), shown, fill=ink, font=font)
        texts.append(shown)
        boxes.append(box)
        y = box.bottom + int(rng.integers(10, 30))
    return Page(_age(np.asarray(picture), rng, blur=1.0, grain=14.0), tuple(texts), tuple(boxes))


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ink and paper: dark on light, one time in five the other way round."""
    dark = tuple(int(v) for v in rng.integers(0, 90, size=3))
    light = tuple(int(v) for v in rng.integers(170, 256, size=3))
    return (light, dark) if rng.random() < 0.2 else (dark, light)


def _age(picture: Picture, rng: np.random.Generator, blur: float, grain: float) -> Picture:
    """Blur and grain as a camera adds them, each up to the given radius and deviation."""
    from PIL import Image, ImageFilter

    soften = ImageFilter.GaussianBlur(float(rng.uniform(0.0, blur)))
    soft = np.asarray(Image.fromarray(picture).filter(soften), np.float32)
    noise = rng.normal(0.0, float(rng.uniform(0.0, grain)), size=picture.shape)
    return np.clip(soft + noise, 0, 255).astype(np.uint8)

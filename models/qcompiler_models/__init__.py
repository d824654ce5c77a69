"""Real models with data and scores, and tiny seeded ones, for tests, benchmarks and demos.

A real model arrives inside an ordinary package at first use and is cached outside the repository
(``assets``); a tiny one is built on the spot (``tiny``).
"""

from __future__ import annotations

import difflib
import functools
import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from qcompiler_models import tiny
from qcompiler_models.assets import AssetError

if TYPE_CHECKING:
    from qcompiler_models.real import RealModel

__all__ = [
    "LANGUAGE_MODELS",
    "REAL_MODELS",
    "AssetError",
    "UnknownModelError",
    "load_model",
    "tiny",
]

REAL_MODELS = MappingProxyType(
    {
        "minilm": "minilm:MiniLM",
        "efficientnet-lite0": "efficientnet:EfficientNetLite0",
        "ppocr-rec": "ppocr_rec:PpOcrRec",
        "ppocr-det": "ppocr_det:PpOcrDet",
        "whisper-encoder": "whisper:WhisperEncoder",
        "whisper-decoder": "whisper:WhisperDecoder",
    }
)
"""Names of the real models, each with its module and class."""

LANGUAGE_MODELS = MappingProxyType({"smollm2": "smollm2:SmolLM2"})
"""The same of models that generate text: they are judged by other data, under other recipes."""


class UnknownModelError(KeyError):
    """No model has this name."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the quotes of repr


@functools.cache
def load_model(name: str) -> RealModel:
    """The real model of that name, the same at each call. Fetches nothing until it is asked for it.

    Raises:
        UnknownModelError: If there is none; the message names the nearest.
    """
    models = {**REAL_MODELS, **LANGUAGE_MODELS}
    if name not in models:
        near = difflib.get_close_matches(name, models, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(f"no model named {name!r}; {hint}known: {', '.join(models)}")
    module_name, class_name = models[name].split(":")
    module = importlib.import_module(f"{__name__}.{module_name}")
    model: RealModel = getattr(module, class_name)()
    return model

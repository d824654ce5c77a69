"""The pipeline of models that come quantized."""

from __future__ import annotations

from qcompiler.pipeline.contract import Pass, Phase
from qcompiler.pipeline.registry import all_passes, default_pipeline

__all__ = ["quantized_pipeline"]

_IMPORT, _ADOPT, _SHAPES = "import-quantized", "adopt-quantized", "observe-shapes"
_CACHE = "measure-cache"
_FIRST = "raise-opset"  # blocks and 16-bit types can be spelled from opset 21 on


def quantized_pipeline() -> tuple[Pass, ...]:
    """Spell the integer operators out, clean up what is float, adopt the sites, lower them.

    Nothing of the model is decided, measured or rounded: whoever quantized it did that. The cache
    of a decoder is still float, and measured.
    """
    known = all_passes()
    usual = default_pipeline()
    passes = [item for item in usual if item.phase is Phase.FLOAT]
    behind = next((i + 1 for i, item in enumerate(passes) if item.name == _FIRST), 0)
    passes.insert(behind, known[_IMPORT]())
    passes += [known[_SHAPES](), known[_CACHE](), known[_ADOPT]()]
    return (*passes, *(item for item in usual if item.phase is Phase.LOWER))

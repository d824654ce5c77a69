"""Leave out of the statistics what an attention mask marks as padding."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.pipeline.contract import Feed

__all__ = ["Padding"]

_USUAL = "attention_mask"


@dataclasses.dataclass(frozen=True, slots=True)
class Padding:
    """Where the padding is told.

    Attributes:
        mask: Name of the input ``[batch, sequence]`` that is 0 on padding, or "" for none.
        free_sequence: Whether the sequence of that input has no fixed length.
    """

    mask: str
    free_sequence: bool = True

    @classmethod
    def of(cls, model: ir.Model, name: str | None) -> Padding:
        """The input that the option ``calibration.mask`` means.

        Raises:
            QcError: QC403, the model has no such input.
        """
        inputs = {value.name: value for value in model.graph.inputs if value.name}
        if name is None:
            name = _USUAL if _USUAL in inputs else ""
        if not name:
            return cls("")
        if name not in inputs:
            raise QcError(
                Code.RECIPE_KEY,
                "calibration.mask",
                f"the model has no input {name!r}",
                nearest(name, inputs),
            )
        shape = inputs[name].shape
        free = shape is None or len(shape) < 2 or not isinstance(shape[1], int)
        return cls(name, free)

    def may_cut(self, value: ir.Value) -> bool:
        """Whether the value can have the mask's axes in front, as far as its shape is known."""
        if not self.mask:
            return False
        if value.shape is None or len(value.shape) < 2:
            return True
        # heads and channels have fixed sizes, a sequence of free length has none
        return not (self.free_sequence and len(value.shape) > 2 and isinstance(value.shape[1], int))

    def keep(self, feed: Feed) -> npt.NDArray[np.bool_] | None:
        """True where there is data, ``[batch, sequence]``; None without a usable mask."""
        mask = feed.get(self.mask) if self.mask else None
        if mask is None or mask.ndim != 2:
            return None
        # a mask that is added to scores: 0 keeps, a large negative number hides
        is_added = mask.dtype.kind == "f" and mask.size and mask.min() < 0
        keep = mask == 0 if is_added else mask != 0
        return None if keep.all() else np.asarray(keep)

    @staticmethod
    def cut(x: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """The rows with data of ``[batch, sequence, ...]``; other shapes come back as they are."""
        if x.ndim > 2 and x.shape[:2] == keep.shape:
            return x[keep]
        if x.ndim == 2 and len(x) == keep.size and x.shape != keep.shape:
            return x[keep.reshape(-1)]  # the two axes flattened, as for a Gemm
        return x

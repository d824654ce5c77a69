"""Remove what nobody reads."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.ir.edit import remove_dead
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State

__all__ = ["RemoveDead"]


@dataclasses.dataclass(frozen=True)
class RemoveDead(Pass):
    """Remove nodes and initializers without a reader, in the main graph and in bodies.

    Last of its phase: it clears what folding and fusing left behind.

    Given:  ``%a = Relu(%x);  %y = Neg(%x);  out %y``
    Result: ``%y = Neg(%x);  out %y``
    """

    name: ClassVar[str] = "remove-dead"
    phase: ClassVar[Phase] = Phase.FLOAT

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Remove until nothing dead is left (one backward walk does)."""
        return PassResult(modified=remove_dead(model))

"""Find the concrete shape of every value on one feed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.observe import observe

__all__ = ["ObserveShapes"]


@dataclasses.dataclass(frozen=True)
class ObserveShapes(Pass):
    """Note dtype and shape of every value on ``state.sample``; generate a sample if there is none.

    Costs are judged at these shapes, so a sample should have the sizes of the real work.
    """

    name: ClassVar[str] = "observe-shapes"
    phase: ClassVar[Phase] = Phase.DECIDE
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.shapes``; the model is untouched.

        Raises:
            QcError: QC607, the runtime cannot run the float model on the sample.
        """
        if state.sample is None:
            state.sample = generate_feed(model, state.recipe.seed)
        state.shapes = observe(model, state.sample)
        return PassResult(modified=False)

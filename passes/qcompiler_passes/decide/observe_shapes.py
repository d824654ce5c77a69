"""Find the concrete shape of every value on one feed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import QcError
from qcompiler.ir.walk import custom_operators
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.runtime.inputs import generate_feed
from qcompiler.runtime.observe import inferred_shapes, observe
from qcompiler.runtime.trial_feeds import runnable_feed

__all__ = ["ObserveShapes"]


@dataclasses.dataclass(frozen=True)
class ObserveShapes(Pass):
    """Note dtype and shape of every value on ``state.sample``; generate a sample if there is none.

    Costs are judged at these shapes, so a sample should have the sizes of the real work. Shapes
    that an earlier pass observed are kept: who edits the graph behind it drops or amends them.
    """

    name: ClassVar[str] = "observe-shapes"
    phase: ClassVar[Phase] = Phase.DECIDE
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.shapes``; the model is untouched.

        Shapes of a model with custom operators, which the runtime may not know, are inferred when
        it does not run.

        Raises:
            QcError: QC607, the runtime cannot run the float model on the sample.
        """
        if state.shapes is not None:
            return PassResult(modified=False)
        vague: list[str] = []
        try:
            if state.sample is None:
                vague = [str(value.name) for value in model.graph.inputs if value.shape is None]
                state.sample = runnable_feed(model, state.recipe.seed)
            state.shapes = observe(model, state.sample)
        except QcError as error:
            custom = custom_operators(model)
            if vague:
                raise _unknown_rank(error, vague) from error
            if not custom:
                raise
            if state.feeds is not None:
                raise _cannot_calibrate(error, custom) from error
            state.sample = state.sample or generate_feed(model, state.recipe.seed)
            state.shapes = inferred_shapes(model, state.sample)
        return PassResult(modified=False)


def _unknown_rank(error: QcError, names: list[str]) -> QcError:
    found = error.diagnostic
    return QcError(
        found.code,
        ", ".join(names),
        "the model does not say the rank of this input, and a scalar it does not take: "
        f"{found.message}",
        "give calibration data, or declare the shape in the model",
    )


def _cannot_calibrate(error: QcError, custom: list[str]) -> QcError:
    found = error.diagnostic
    return QcError(
        found.code,
        found.where,
        f"{found.message}; the model has custom operators: {', '.join(custom[:5])}",
        "calibration runs the model: leave the data out, and dynamic or weight-only kernels are "
        "used without running it",
        custom=custom,
    )

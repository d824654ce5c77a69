"""Measure the ranges of the activations that the plan stores in low precision."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompiler.calibration.runner import Statistics, collect
from qcompiler.diagnostics import Code, QcError
from qcompiler.numerics.parallel import on_all_cores
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Own

__all__ = ["Calibrate"]


@dataclasses.dataclass(frozen=True)
class Calibrate(Pass):
    """Stream the calibration data through the float model, once, and give ranges.

    Values that share parameters or have known ranges are not measured. A plan without static
    values needs no data and gets empty statistics. Statistics that are there already (from an
    earlier pass that had to see the data, or from a saved summary) are used instead of the data.
    """

    name: ClassVar[str] = "calibrate"
    phase: ClassVar[Phase] = Phase.MEASURE
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS, Fact.RANGES})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.statistics`` and ``state.ranges``.

        Raises:
            QcError: QC410 the plan has static values and there is no data; QC2xx bad data.
        """
        assert state.plan is not None
        specs = {
            name: intent.spec
            for name, intent in state.plan.values.items()
            if isinstance(intent, Own) and not intent.spec.dynamic
        }
        options = state.recipe.calibration
        if state.statistics is None or not set(specs) <= set(state.statistics.summaries):
            if specs and state.feeds is None:
                raise QcError(
                    Code.NEEDS_CALIBRATION,
                    "calibration",
                    f"the plan has {len(specs)} static activations and there is no data",
                    "give calibration data, or use recipe 'dynamic-int8'",
                )
            state.statistics = collect(model, specs, state.feeds or (), options)
        statistics: Statistics = state.statistics
        ranges = on_all_cores(lambda item: statistics.range_of(*item, options), specs.items())
        state.ranges = dict(zip(specs, ranges, strict=True))
        return PassResult(modified=False, diagnostics=statistics.diagnostics)

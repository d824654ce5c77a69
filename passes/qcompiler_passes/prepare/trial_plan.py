"""The plan as it would be made now, for passes before planning that depend on it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from qcompiler.pipeline.contract import State
from qcompiler.plan import Plan
from qcompiler_passes.decide.observe_shapes import ObserveShapes
from qcompiler_passes.decide.place_precision import PlacePrecision

__all__ = ["trial_plan"]


def trial_plan(model: ir.Model, state: State) -> Plan:
    """Plan on trial; sample and shapes are kept in ``state`` for the real one."""
    trial = dataclasses.replace(state, plan=None, diagnostics=[])
    ObserveShapes().run(model, trial)
    state.sample, state.shapes = trial.sample, trial.shapes
    PlacePrecision().run(model, trial)
    assert trial.plan is not None
    return trial.plan

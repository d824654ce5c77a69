"""Compiles of one model under several recipes, sharing what does not depend on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from qcompiler.pipeline.contract import Pass, Phase, State
from qcompiler.pipeline.run import PassTiming
from qcompiler.recipe import Recipe
from qcompiler.sensitivity.stages import Compiled, RunPasses, Stages

__all__ = ["Trials"]

_PREPARING = ("calibration", "smoothing", "equalize_gates", "equalize_layers", "absorb_biases")


class Trials:
    """What the recipes have in common is computed once.

    Float passes run once. What prepares the model, and the calibration of the result, run once for
    each setting of the keys that they read, as long as it is one of the last two.
    """

    def __init__(
        self, reference: ir.Model, state: State, passes: Sequence[Pass], run: RunPasses
    ) -> None:
        """Run the float passes.

        Args:
            reference: The float model; left as it is.
            state: Left as it is but for the sample.
            passes: The whole pipeline.
            run: Runs passes on a model and a state.
        """
        self._run = run
        self._model = reference.clone()
        self._state = dataclasses.replace(state, diagnostics=[], removed={}, work=None)
        self._later = [item for item in passes if item.phase >= Phase.PREPARE]
        early = [item for item in passes if item.phase < Phase.PREPARE]
        run(early, self._model, self._state)
        self._stages: dict[str, Stages] = {}

    def changes(self, name: str, recipe: Recipe, *, streams: bool) -> bool:
        """Whether a pass before planning changes the model.

        Args:
            name: The pass; one that is not in the pipeline changes nothing.
            recipe: Of the trial.
            streams: It reads all the data: what it finds is kept for :meth:`compile`.
        """
        if streams:
            timings: Sequence[PassTiming] = self._of(recipe).timings
            return any(item.modified for item in timings if item.name.startswith(name))
        names = [item.name for item in self._later]
        upto = self._later[: names.index(name) + 1] if name in names else []
        state = dataclasses.replace(self._state, recipe=recipe, diagnostics=[], removed={})
        timings = self._run(upto, self._model.clone(), state)
        return bool(timings) and timings[-1].modified

    def compile(self, recipe: Recipe) -> Compiled:
        """An artifact.

        Raises:
            QcError: What the passes raise.
        """
        return self._of(recipe).compile({}, recipe)

    def _of(self, recipe: Recipe) -> Stages:
        key = recipe.model_dump_json(include=set(_PREPARING))
        stages = self._stages.pop(key, None)
        if stages is None:
            state = dataclasses.replace(self._state, recipe=recipe, diagnostics=[], removed={})
            stages = Stages(self._model, state, self._later, self._run)
        self._stages[key] = stages
        while len(self._stages) > 2:
            self._stages.pop(next(iter(self._stages)))
        return stages

"""What keys of a recipe are held against: the model, the data, and the plan that was made."""

from __future__ import annotations

import dataclasses
import functools

from qcompiler.frontends.opened import Opened
from qcompiler.numerics.nbits import NBitsLayout, nbits_layout
from qcompiler.pipeline.contract import State
from qcompiler.plan import Own, Plan
from qcompiler.recipe import Recipe
from qcompiler.recipe_keys import said_keys
from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.activations import weight_index
from qcompiler.targets.schema import Form, Scheme

__all__ = ["KeyFacts"]

_BY_STAGES = frozenset({"gptq", "awq", "teq", "autoround"})  # what they find takes long


@dataclasses.dataclass(frozen=True)
class KeyFacts:
    """What keys are held against.

    Attributes:
        recipe: The user's, before steps were tried.
        opened: The model.
        state: After all passes.
        given: The plan that the user gave, or None.
        calibrated: Whether the user gave calibration data.
        exemplified: Whether the user gave example inputs.
        passes: Names of those that ran.
    """

    recipe: Recipe
    opened: Opened
    state: State
    given: Plan | None
    calibrated: bool
    exemplified: bool
    passes: frozenset[str]

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys and arguments that the user gave."""
        arguments = {"work": self.state.work is not None, "example_inputs": self.exemplified}
        return (
            *said_keys(self.recipe),
            *(name for name, is_given in arguments.items() if is_given),
        )

    @functools.cached_property
    def weights(self) -> list[tuple[str, str, QSpec]]:
        """Operator, algorithm and spec of the weights that are stored as the recipe says."""
        rows = {row.id: row for row in self.state.target.kernels}
        found = []
        for item in self.state.plan or ():
            row = rows.get(item.kernel)
            index = None if row is None or row.scheme is not Scheme.WEIGHT else weight_index(row)
            if row is None or index is None:
                continue
            spec, offered = item.inputs[index], row.inputs[index]
            if spec and offered and offered.granularity is Granularity.BLOCK:
                found.append((item.op, item.algorithm or "rtn", spec))
        return found

    @functools.cached_property
    def algorithms(self) -> frozenset[str]:
        """Those that round weights of layers."""
        return frozenset(algorithm for _, algorithm, _ in self.weights)

    @functools.cached_property
    def schemes(self) -> frozenset[Scheme]:
        """Those of the kernels in the plan."""
        used = {item.kernel for item in self.state.plan or ()}
        return frozenset(row.scheme for row in self.state.target.kernels if row.id in used)

    @property
    def budgets(self) -> bool:
        """Whether a budget chooses the bits."""
        return self.recipe.bits_budget is not None or self.recipe.megabytes_budget is not None

    @property
    def quantizes_activations(self) -> bool:
        """Whether any kernel reads activations in low precision."""
        return bool(self.schemes - {Scheme.WEIGHT})

    @property
    def calibrates(self) -> bool:
        """Whether any activation gets a range from data."""
        plan = self.state.plan
        intents = () if plan is None else plan.values.values()
        return any(isinstance(item, Own) and not item.spec.dynamic for item in intents)

    @property
    def smooths(self) -> bool:
        """Whether linear layers make integers of activations that data say how to smooth."""
        rows = {
            row.id
            for row in self.state.target.kernels
            if row.inputs[0] is not None and not row.inputs[0].is_float8
        }
        plan = self.state.plan or ()
        linear = any(item.kernel in rows and item.op == "MatMul" for item in plan)
        return (linear or self.recipe.prefill is not None) and self.state.feeds is not None

    @property
    def convolves(self) -> bool:
        """Whether a convolution is quantized."""
        return any(item.op == "Conv" and item.kernel for item in self.state.plan or ())

    @property
    def guards(self) -> bool:
        """Whether an artifact that is slow gives way to float."""
        return self.recipe.verify.guard and not self.recipe.force and self.given is None

    @property
    def symmetric(self) -> bool:
        """Whether some weight in few bits has no zero point."""
        return self.budgets or any(spec.symmetric for _, _, spec in self.weights)

    @property
    def rounds_to_nearest(self) -> bool:
        """Whether the table ``rtn`` is read: where rounding ends, or begins, or is compared."""
        if self.budgets or not self.algorithms.isdisjoint({"rtn", "teq", "autoround"}):
            return True
        awq = "awq" in self.algorithms and self.recipe.awq.rounding == "nearest"
        return awq and not self.recipe.awq.clip

    @property
    def compensates(self) -> bool:
        """Whether GPTQ rounds."""
        awq = self.recipe.awq.rounding == "gptq" and "awq" in self.algorithms
        return awq or "gptq" in self.algorithms

    @property
    def keeps_work(self) -> bool:
        """Whether anything is found that takes long and is kept for a compile that is cut off."""
        learns = bool(self.weights) and self.recipe.distill.steps > 0
        return learns or not _BY_STAGES.isdisjoint(self.algorithms)

    @property
    def scales_channels(self) -> bool:
        """Whether AWQ's search runs, for itself or before AutoRound."""
        learned = self.recipe.autoround.scale_channels and "autoround" in self.algorithms
        return learned or "awq" in self.algorithms

    @property
    def few_bits(self) -> bool:
        """Whether some weight has no more bits than clipped ranges are searched for."""
        return self.budgets or any(spec.width <= 4 for _, _, spec in self.weights)

    @property
    def four_bits(self) -> bool:
        """Whether the runtime multiplies weights of 4 bits."""
        layouts = [nbits_layout(spec) for op, _, spec in self.weights if op == "MatMul"]
        four = any(isinstance(item, NBitsLayout) and item.bits == 4 for item in layouts)
        return four and self.state.form is Form.ORT

    @property
    def takes_text(self) -> bool:
        """Whether text can be calibrated on."""
        names = {value.name for value in self.opened.model.graph.inputs}
        return "input_ids" in names and self.opened.encoder is None

    @property
    def reads_text(self) -> bool:
        """Whether the user's calibration data are text."""
        return self.state.feeds is not None and self.state.feeds.of_text

    @property
    def writes_text(self) -> bool:
        """Whether the model wrote its calibration data itself."""
        return self.state.feeds is not None and not self.calibrated

"""The contract of a pass, and the state that passes hand to one another."""

from __future__ import annotations

import abc
import dataclasses
import enum
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Diagnostic
from qcompiler.numerics.qtensor import QTensor
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form, Target

if TYPE_CHECKING:
    from qcompiler.calibration.feeds import FeedSource
    from qcompiler.calibration.runner import Statistics
    from qcompiler.plan import Plan
    from qcompiler.recipe import Recipe

__all__ = ["Fact", "Feed", "Pass", "PassResult", "Phase", "State", "TensorRange"]

Feed = Mapping[str, npt.NDArray[np.generic]]


class Phase(enum.IntEnum):
    """Where in the pipeline a pass belongs; phases run in this order."""

    FLOAT = 0  # exact clean-ups and fusions
    PREPARE = 1  # exact, for quantization
    DECIDE = 2  # fills the plan; the graph is untouched
    MEASURE = 3  # fills ranges; the graph is untouched
    WEIGHTS = 4  # rounds constants; the structure is untouched
    APPLY = 5  # plan and ranges become Q/DQ
    LOWER = 6  # the target's own operators


class Fact(str, enum.Enum):
    """What a pass may need, give or drop; each is a field of :class:`State`."""

    SHAPES = "shapes"
    PLAN = "plan"
    STATISTICS = "statistics"
    RANGES = "ranges"
    WEIGHTS = "weights"


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRange:
    """The range of one activation, shaped like its scale.

    Attributes:
        lo: Smallest value to represent.
        hi: Largest.
        method: The calibrator that found it (``minmax``, ``mse``, ``fixed`` ...).
    """

    lo: npt.NDArray[np.float32]
    hi: npt.NDArray[np.float32]
    method: str


@dataclasses.dataclass
class State:
    """What flows beside the model. Facts are None until a pass gives them.

    Attributes:
        target: Where the model will run.
        recipe: What the user wants.
        form: The output form.
        feeds: Calibration data, or None.
        sample: One feed that the model runs on (from calibration, or generated).
        shapes: Concrete shape and dtype of every value of the main graph on ``sample``.
        plan: The plan.
        statistics: What calibration saw.
        ranges: Ranges of the values that own parameters, by value name.
        weights: Rounded constants by (node name, input index).
        session: Session options the emitted model wants (a lowering pass sets them).
        diagnostics: All that passes reported, in order.
        removed: User's node name -> pass that folded it away (kept by the runner).
        bias_shifts: What to add to the output of a node by channel, ``[channels]``, where that was
            measured on the quantized model.
        progress: Takes a line on how far a long pass is; None when nobody listens.
        bits: Weight bits by node name, where a budget chose them.
        moments: ``X^T X`` of an activation within each group of the weights that read it, by value
            name, ``[groups, g, g]``.
        cache_scales: Scales of keys and values that attention keeps in int8, by name of the output:
            ``[1]``, or ``[1, kv heads, 1, head width]``.
        work: Folder for what a compile that is cut off would lose; None keeps nothing.
        pinned: Planned nodes that must stay in float whatever rules and costs say, and why.
    """

    target: Target
    recipe: Recipe
    form: Form
    feeds: FeedSource | None = None
    sample: Feed | None = None
    shapes: Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]] | None = None
    plan: Plan | None = None
    statistics: Statistics | None = None
    ranges: Mapping[str, TensorRange] | None = None
    weights: Mapping[tuple[str, int], QTensor] | None = None
    session: SessionSettings = dataclasses.field(default_factory=SessionSettings)
    diagnostics: list[Diagnostic] = dataclasses.field(default_factory=list)
    removed: dict[str, str] = dataclasses.field(default_factory=dict)
    bias_shifts: Mapping[str, npt.NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    progress: Callable[[str], None] | None = None
    bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    moments: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    cache_scales: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    work: pathlib.Path | None = None
    pinned: Mapping[str, Diagnostic] = dataclasses.field(default_factory=dict)

    def has(self, fact: Fact) -> bool:
        """Whether the fact is there."""
        return getattr(self, fact.value) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass says of its run.

    Attributes:
        modified: Whether the model changed (checked: the printed text must have changed).
        diagnostics: What the user may want to know.
    """

    modified: bool
    diagnostics: Sequence[Diagnostic] = ()


@dataclasses.dataclass(frozen=True)
class Pass(abc.ABC):
    """One step of the pipeline. Its dataclass fields are its options, here and on the command line.

    A pass holds no state between runs, reads no environment variable, never prints. Subclasses are
    frozen dataclasses; options are int, float, bool or str with defaults.
    """

    name: ClassVar[str]
    phase: ClassVar[Phase]
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    drops: ClassVar[frozenset[Fact]] = frozenset()
    exact: ClassVar[bool] = True
    default: ClassVar[bool] = True  # part of the default pipeline, not only of those that name it

    @abc.abstractmethod
    def run(self, model: ir.Model, state: State) -> PassResult:
        """Rewrite ``model`` in place (or fill facts of ``state``) and say whether it changed."""

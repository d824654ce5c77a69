"""The float model with a switch per planned node, open in the runtime.

Made by the pass ``insert-switches``: a run computes any mixture of float and low-precision nodes,
and, where the model takes a batch, another mixture for every sample.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import QcError
from qcompiler.pipeline.contract import Feed, State
from qcompiler.plan import Verdict
from qcompiler.runtime.session import open_session, run, tensors_of
from qcompiler.runtime.settings import SessionSettings

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["SWITCHES", "Outputs", "Switchboard", "sample_of"]

SWITCHES = "qcompiler.switches"

Outputs = dict[str, npt.NDArray[Any]]

# Between Q and DQ the runtime (1.31.1, WeightBiasQuantization) rounds float weights of a Conv anew,
# to one scale per tensor: the twins' weights are rounded already, and well.
_SETTINGS = SessionSettings("all", {"session.disable_quant_qdq": "1"})
_TRIED = 3  # rows of the trial batch: few results have 3 elements on another first axis
_SAME_RTOL = 1e-3  # of the largest value: sums of a batch run in another order


@dataclasses.dataclass
class Switchboard:
    """A session in which each planned node is float or as deployed, run by run.

    Attributes:
        nodes: The planned nodes, in the order of the plan.
        batched: Inputs whose first axis counts samples; empty when the model takes no batch.
        runs: Runs so far.
        samples: Samples computed so far, a run counting as many as it has rows.
    """

    nodes: tuple[str, ...]
    batched: tuple[str, ...]
    session: ort.InferenceSession = dataclasses.field(repr=False)
    runs: int = 0
    samples: int = 0

    @classmethod
    def open(cls, planned: ir.Model, state: State) -> Switchboard:
        """The switchboard of a model that was planned, calibrated and whose weights are rounded.

        Args:
            planned: The model as ``insert-qdq`` would take it; left as it is.
            state: Its plan, ranges, weights and shapes; left as they are.

        Raises:
            QcError: The runtime refuses the model.
        """
        from qcompiler.pipeline.registry import parse_pipeline
        from qcompiler.pipeline.run import run_pipeline

        assert state.plan is not None, "sensitivity is that of planned nodes"
        model = planned.clone()
        scratch = dataclasses.replace(state, diagnostics=[], removed={})
        run_pipeline(parse_pipeline("insert-switches"), model, scratch, check=False)
        nodes = tuple(item.node for item in state.plan if item.verdict is Verdict.QUANTIZED)
        inputs = [value for value in model.graph.inputs if value.name != SWITCHES]
        free = all(
            value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int)
            for value in inputs
        )
        batched = tuple(value.name or "" for value in inputs) if free else ()
        return cls(nodes, batched, open_session(model, settings=_SETTINGS))

    def run(self, feed: Feed, switches: npt.NDArray[np.bool_]) -> Outputs:
        """The outputs under ``switches``, bool ``[1 or batch, nodes]``.

        Raises:
            QcError: The runtime fails, as on switches by sample in a model that takes no batch.
        """
        self.runs += 1
        self.samples += next((len(feed[name]) for name in self.batched), 1)
        return tensors_of(run(self.session, {**feed, SWITCHES: switches}))

    def repeat(self, sample: Feed, rows: int) -> Feed:
        """A batch of ``rows`` copies of one sample."""
        return {name: np.repeat(array, rows, axis=0) for name, array in sample.items()}

    def takes_rows(self, sample: Feed) -> bool:
        """Whether each sample of a batch may have switches of its own.

        Tried, not proven from shapes: in a batch of three, one sample is switched to low precision
        as a whole and the others must come out as if alone.
        """
        if not self.batched:
            return False
        off = np.zeros((1, len(self.nodes)), np.bool_)
        alone = self.run(sample, off)
        switches = np.repeat(off, _TRIED, axis=0)
        switches[1] = True
        try:
            found = self.run(self.repeat(sample, _TRIED), switches)
        except QcError:
            return False
        return all(_same(found[name], alone[name]) for name in alone)


def sample_of(feed: Feed, batched: tuple[str, ...], index: int) -> Feed:
    """Sample ``index`` of a feed as a batch of one; the feed itself in a model without a batch."""
    sizes = {len(feed[name]) for name in batched}
    if len(sizes) != 1:
        return feed
    (size,) = sizes
    row = index % size
    return {name: array[row : row + 1] for name, array in feed.items()}


def _same(batch: npt.NDArray[Any], alone: npt.NDArray[Any]) -> bool:
    if batch.ndim == 0 or len(batch) != _TRIED or len(alone) != 1:
        return False
    if batch.shape[1:] != alone.shape[1:] or batch.dtype.kind not in "fiub":
        return False
    want = alone[0].astype(np.float64)
    bound = _SAME_RTOL * max(float(np.abs(want).max(initial=0.0)), 1e-6)
    return all(float(np.abs(batch[row] - want).max(initial=0.0)) <= bound for row in (0, 2))

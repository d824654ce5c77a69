"""Bring an attention mask into the one form that ONNX Runtime's Attention takes and trusts.

Facts, probed on ONNX Runtime 1.31.1 (CPU):

- The last two axes of the mask must be ``[queries, keys]``; it does not broadcast there, although
  the operator's text allows it. The first two may be 1. Rank 2 to 4.
- A row that is masked everywhere (False, -inf, or the lowest float) gives zeros. That is what the
  IsNaN guard of torch's exporter gives for -inf. But a softmax over a row of *lowest floats* gives
  equal weights. The number next to the lowest one is not special, so it replaces the lowest.
- Float and bool masks take the same time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.analysis.dims import Dim, Dims
from qcompiler.ir.edit import Tape, constant
from qcompiler.ir.provenance import inherit
from qcompiler.patterns.match import scalar_of
from qcompiler.patterns.rule import stamp

__all__ = ["Mask", "MaskWriter"]

_LOWEST = float(np.finfo(np.float32).min)
_ABOVE_LOWEST = float(np.nextafter(np.float32(_LOWEST), np.float32(0)))
_SWAMPS = -1e12  # score + this == this in float32, for scores below 3e4
_SURELY_ZERO = -1e4  # exp(-1e4 - max) is 0 in float32 while scores stay above -9,800
_WALK = 256  # nodes looked at behind a mask
_PASS_ON = frozenset(
    {"Add", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze", "Where"}
)
_BIG = 1 << 20  # elements of a constant that we still look through


@dataclasses.dataclass(frozen=True)
class Mask:
    """What stands between the scores and the softmax.

    Attributes:
        added: What is added to the scores, in any order.
        condition: Chooses between the scores and ``fill``, or None.
        fill: Put in place of scores.
        fill_where: Which truth value of ``condition`` puts ``fill``.
    """

    added: tuple[ir.Value, ...] = ()
    condition: ir.Value | None = None
    fill: float = 0.0
    fill_where: bool = False

    def why_not(self, dims: Dims, scores: Sequence[Dim]) -> str | None:
        """Why it cannot become an additive mask for scores ``[batch, heads, queries, ..]``."""
        for value in self.values:
            shape = dims.shape(value)
            if shape is None or len(shape) > 4:
                return f"the rank of mask %{value.name} is unknown or above 4"
            # the operator's output has the query's sizes: a mask must not widen them
            for size, wanted in zip(((1,) * 4 + shape)[-4:-1], scores, strict=True):
                if size not in (1, wanted) and wanted == 1:
                    return f"mask %{value.name} repeats the scores along an axis of size 1"
        for value in self.added:
            if value.dtype not in (None, ir.DataType.FLOAT):
                return f"mask %{value.name} is not float32"
        enough = _SWAMPS if self.added else _SURELY_ZERO
        if self.condition is not None and self.fill > enough:
            return f"masked scores become {self.fill:g}, wanted {enough:g} or less"
        return None

    @property
    def values(self) -> tuple[ir.Value, ...]:
        """All values that it is made of."""
        return self.added if self.condition is None else (*self.added, self.condition)

    @property
    def hidden(self) -> float:
        """What to add to scores so that they become ``fill`` in the eyes of the softmax."""
        return self.fill if np.isneginf(self.fill) else max(min(self.fill, _SWAMPS), _ABOVE_LOWEST)


Key = tuple[Mask, Dim, Dim]


class MaskWriter:
    """Writes each mask into the graph once, however many attentions use it."""

    def __init__(self, graph: ir.Graph, dims: Dims, pass_name: str) -> None:
        """Write into ``graph``."""
        self._graph = graph
        self._dims = dims
        self._pass_name = pass_name
        self._written: dict[Key, ir.Value | None] = {}

    def write(self, mask: Mask, queries: Dim, keys: Dim) -> ir.Value | None:
        """A float mask whose last axes are ``[queries, keys]``; None when sizes have no source."""
        key = (mask, queries, keys)
        if key not in self._written:
            tape = Tape(self._graph, f"{mask.values[0].name}/attention")
            self._written[key] = self._build(tape, mask, queries, keys)
            self._insert(tape)
        return self._written[key]

    def _build(self, tape: Tape, mask: Mask, queries: Dim, keys: Dim) -> ir.Value | None:
        terms = [_without_lowest(tape, _unexpanded(value)) for value in mask.added]
        if mask.condition is not None:
            choices = [np.array(mask.hidden, np.float32), np.array(0, np.float32)]
            ordered = choices if mask.fill_where else choices[::-1]
            terms.append(tape.op("Where", _unexpanded(mask.condition), *ordered))
        value = functools.reduce(lambda a, b: tape.op("Add", a, b), terms)
        shape = self._dims.shape(value)
        if shape is not None and len(shape) >= 2 and shape[-2:] == (queries, keys):
            return value
        target = self._dims.write(tape, (1, 1, queries, keys))
        if target is None:
            tape.nodes.clear()
            return None
        expanded: ir.Value = tape.op("Expand", value, target)
        return expanded

    def _insert(self, tape: Tape) -> None:
        """As early as the inputs allow, so that every attention comes later."""
        if not tape.nodes:
            return
        made = set(tape.nodes)
        producers = {
            producer
            for node in tape.nodes
            for value in node.inputs
            if value is not None and (producer := value.producer()) is not None
        } - made
        if producers:
            last = max(enumerate(self._graph), key=lambda item: (item[1] in producers, item[0]))[1]
            inherit(tape.nodes, [last])
            self._graph.insert_after(last, tape.nodes)
        else:
            self._graph.insert_before(self._graph[0], tape.nodes)
        stamp(tape.nodes, self._pass_name)


def _unexpanded(mask: ir.Value) -> ir.Value:
    """The mask before it was repeated: to the scores that is the same."""
    producer = mask.producer()
    while producer is not None and producer.op_type == "Expand" and producer.inputs[0] is not None:
        mask = producer.inputs[0]
        producer = mask.producer()
    return mask


def _without_lowest(tape: Tape, mask: ir.Value) -> ir.Value:
    if not _may_hold_lowest(mask):
        return mask
    producer = mask.producer()
    if producer is not None and producer.op_type == "Where" and producer.domain == "":
        choices = [scalar_of(value) for value in producer.inputs[1:]]
        numbers = [number for number in choices if number is not None]
        if len(numbers) == 2:
            raised = [_ABOVE_LOWEST if number == _LOWEST else number for number in numbers]
            chosen: ir.Value = tape.op(
                "Where", producer.inputs[0], *(np.array(item, np.float32) for item in raised)
            )
            return chosen
    lowest = tape.op("Equal", mask, np.array(_LOWEST, np.float32))
    result: ir.Value = tape.op("Where", lowest, np.array(_ABOVE_LOWEST, np.float32), mask)
    return result


def _may_hold_lowest(mask: ir.Value) -> bool:
    """Whether a constant behind the mask is the lowest float, or a caller could pass it in.

    A caller's numbers count where they arrive unchanged, not where they are computed with.
    """
    stack, seen = [(mask, True)], {mask}
    while stack and len(seen) < _WALK:
        value, unchanged = stack.pop()
        if value.is_graph_input():
            if unchanged and (value.dtype is None or value.dtype.is_floating_point()):
                return True
            continue
        if value.const_value is not None and value.const_value.size > _BIG:
            continue
        array = constant(value)
        if array is not None:
            if array.dtype.kind == "f" and bool((np.abs(array) == -_LOWEST).any()):
                return True
            continue
        producer = value.producer()
        if producer is None:
            continue
        for item in producer.inputs:
            if item is not None and item not in seen:
                seen.add(item)
                stack.append((item, unchanged and producer.op_type in _PASS_ON))
    return False

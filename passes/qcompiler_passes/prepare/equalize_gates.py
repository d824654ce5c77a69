"""Balance the channels of activations that a gate multiplies (squeeze and excitation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.extremes import channel_extremes
from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import Tape, constant
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.targets.schema import Scheme
from qcompiler_passes.prepare.layer_pairs import set_constant

__all__ = ["EqualizeGates"]

_WORTH = 2.0  # times the median: below, channels that balance win less than a bit


@dataclasses.dataclass(frozen=True)
class _Gated:
    """A Conv whose result one Mul gates, and one pool and its 1x1 Conv make the gate from."""

    conv: ir.Node
    multiply: ir.Node
    gate: int  # input of ``multiply``
    squeeze: ir.Node


@dataclasses.dataclass(frozen=True)
class EqualizeGates(Pass):
    """Divide the channels of a gated activation by their ranges and multiply the gate by them.

    Given, with ranges s::

        %x = Conv(%a, %w, %b);  %p = GlobalAveragePool(%x);  %h = Conv(%p, %v, %c)
        ...;  %y = Mul(%x, %g)

    Result, with constants ``w / s``, ``b / s`` and ``v * s``::

        %x = Conv(%a, %w, %b);  %p = GlobalAveragePool(%x);  %h = Conv(%p, %v, %c)
        ...;  %t = Mul(%g, s);  %y = Mul(%x, %t)

    A channel that the gate nearly closes may reach far beyond the others and take the resolution
    of their common scale. Scaled to its own range each channel keeps all levels, for one product
    per channel.
    """

    name: ClassVar[str] = "equalize-gates"
    phase: ClassVar[Phase] = Phase.PREPARE
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Change constants and scale gates; needs calibration data that can be read again."""
        recipe, feeds = state.recipe, state.feeds
        ready = recipe.equalize_gates and Scheme.STATIC in recipe.schemes
        if not ready or state.statistics is not None or feeds is None or not feeds.reiterable:
            return PassResult(modified=False)
        found = list(_find(model.graph))
        seen = channel_extremes(model, {str(x.conv.outputs[0].name): 1 for x in found}, feeds)
        said = []
        for gated in found:
            lo, hi = seen[str(gated.conv.outputs[0].name)]
            factors = _factors(np.maximum(-lo, hi).astype(np.float64))
            if factors.max() >= _WORTH and _apply(model.graph, gated, factors):
                said.append(_done(gated, factors))
        return PassResult(bool(said), tuple(said))


def _find(graph: ir.Graph) -> Iterator[_Gated]:
    for node in graph:
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            continue
        for index in (0, 1):
            conv = _producer(node.inputs[index])
            if conv is None or not _is_convolution(conv):
                continue
            x = conv.outputs[0]
            pools = [use.node for use in x.uses() if use.node is not node]
            if len(x.uses()) != 2 or len(pools) != 1 or x.is_graph_output():
                continue
            squeeze = _squeeze(pools[0])
            if squeeze is not None and _descends(node.inputs[1 - index], squeeze):
                yield _Gated(conv, node, 1 - index, squeeze)


def _squeeze(pool: ir.Node) -> ir.Node | None:
    """The 1x1 Conv behind a mean over all pixels."""
    if pool.op_type != "GlobalAveragePool":
        return None
    mean = pool.outputs[0]
    readers = [use.node for use in mean.uses()]
    if len(readers) != 1 or mean.is_graph_output() or not _is_convolution(readers[0]):
        return None
    weight = constant(readers[0].inputs[1])
    one = weight is not None and weight[0, 0].size == 1
    return readers[0] if one and readers[0].attributes.get_int("group", 1) == 1 else None


def _descends(value: ir.Value | None, squeeze: ir.Node) -> bool:
    """Whether a chain of Conv and functions of one operand leads from ``squeeze`` to the value."""
    node = _producer(value)
    while node is not None and node is not squeeze:
        if node.op_type not in ("Conv", "Relu", "Clip", "Sigmoid", "HardSigmoid", "Identity"):
            return False
        node = _producer(node.inputs[0])
    return node is squeeze


def _is_convolution(node: ir.Node) -> bool:
    """Whether it is a 2-D Conv with constant finite float32 operands."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    arrays = [constant(value) for value in node.inputs[1:] if value is not None]
    known = all(a is not None and a.dtype == np.float32 and np.isfinite(a).all() for a in arrays)
    return known and arrays[0] is not None and arrays[0].ndim == 4


def _factors(ranges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Powers of two near range / median, which change no digit; 1 for channels that are zero."""
    middle = float(np.median(ranges[ranges > 0.0])) if (ranges > 0.0).any() else 1.0
    with np.errstate(divide="ignore"):
        steps = np.rint(np.log2(ranges / middle))
    return np.exp2(np.where(ranges > 0.0, np.clip(steps, -10, 10), 0.0))


def _apply(graph: ir.Graph, gated: _Gated, s: npt.NDArray[np.float64]) -> bool:
    changed = [(gated.conv, 1, 1 / s[:, None, None, None])]
    if len(gated.conv.inputs) > 2 and gated.conv.inputs[2] is not None:
        changed.append((gated.conv, 2, 1 / s))
    changed.append((gated.squeeze, 1, s[None, :, None, None]))
    arrays = []
    for node, index, factor in changed:
        old = constant(node.inputs[index])
        assert old is not None, "_find wants constants"
        with np.errstate(over="ignore"):
            arrays.append((old * factor).astype(old.dtype))
    if not all(np.isfinite(array).all() for array in arrays):
        return False
    for (node, index, _), array in zip(changed, arrays, strict=True):
        set_constant(graph, node, index, array)
    tape = Tape(graph, f"{gated.multiply.name}/gate")
    gate = gated.multiply.inputs[gated.gate]
    scaled = tape.op("Mul", gate, s.reshape(1, -1, 1, 1).astype(np.float32))
    graph.insert_before(gated.multiply, tape.nodes)
    gated.multiply.replace_input_with(gated.gate, scaled)
    return True


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _done(gated: _Gated, s: npt.NDArray[np.float64]) -> Diagnostic:
    return Diagnostic(
        Code.EQUALIZED,
        gated.conv.name or "",
        f"its channels were divided by {s.min():.2g} to {s.max():.2g}, which the gate of"
        f" {gated.multiply.name} makes good",
        "",
        {"channels": len(s), "least": float(s.min()), "most": float(s.max())},
    )

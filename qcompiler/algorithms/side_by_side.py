"""Run a float graph and its quantized twin side by side, layer by layer, on a few samples.

Algorithms that go through the layers in order want to know what a layer gets in the quantized
model, with everything before it rounded already, and what it should give. Both copies advance one
operator at a time, so one walk serves all layers, and values are freed behind their last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import fx

from qcompiler.lift import FakeQuantize, array_to_torch, block_outputs, lift, liftable
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import Feed
from qcompiler.schemes import QSpec

__all__ = ["Activation", "Layer", "SideBySide", "first_samples", "samples_of"]

Tensors = list[torch.Tensor]  # one for each feed
Activation = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], QSpec]
Visit = Callable[["Layer"], None]


class Layer:
    """A layer at the moment when all before it is done.

    Attributes:
        node: The computing node.
        inputs: What it reads in the quantized model, for each feed.
        weight: Its rounded weight; a visitor may put another.
        shift: What is added to its output in the quantized model, by channel; a visitor may set
            it.
    """

    def __init__(self, walk: SideBySide, node: ir.Node, inputs: Tensors, weight: QTensor) -> None:
        """See the class."""
        self._walk = walk
        self.node = node
        self.inputs = inputs
        self.weight = weight
        self.shift: npt.NDArray[np.float64] | None = None

    def mean_error(self) -> npt.NDArray[np.float64]:
        """Mean by channel of float's output less the quantized one's, with weight and no shift."""
        total, count = 0.0, 0
        axis = 1 if self.node.op_type == "Conv" else -1
        for want, found in zip(self._walk.float_result(self.node), self._outputs(), strict=True):
            error = (want.double() - found).movedim(axis, -1).reshape(-1, want.shape[axis])
            total = total + error.sum(0)
            count += len(error)
        return np.asarray((total / max(count, 1)).numpy())  # type: ignore[attr-defined]

    def float_outputs(self, value: ir.Value) -> Tensors:
        """A value behind the layer in the float model, computed ahead; for each feed."""
        return self._walk.ahead(self.node, value)

    def _outputs(self) -> Tensors:
        return self._walk.quantized_result(self)


class SideBySide:
    """One walk over the main graph, up to operators that have no lifted form.

    The quantized copy reads each activation of ``activations`` rounded and each weight of
    ``weights`` as its integers say. All else is float in both.

    Attributes:
        lifted: What is walked.
        left: Nodes that are not, and what stands in the way: a refusal (QC302).
    """

    def __init__(
        self,
        graph: ir.Graph,
        feeds: Sequence[Feed],
        weights: Mapping[tuple[str, int], QTensor],
        activations: Mapping[str, Activation],
    ) -> None:
        """Lift the graph."""
        nodes, self.left = liftable(graph)
        ends = [value for value in graph.outputs if value.producer() in (None, *nodes)]
        seen = [value for value in block_outputs(nodes) if value not in ends] if self.left else []
        self.lifted = lift(nodes, inputs=list(graph.inputs), outputs=[*ends, *seen])
        self.weights = dict(weights)
        self._nodes = {call: node for node, call in self.lifted.calls.items()}
        self._count = len(feeds)
        self._rounders = {
            self.lifted.values[value]: FakeQuantize(*activations[value.name or ""])
            for value in self.lifted.values
            if (value.name or "") in activations
        }
        self._shared: dict[fx.Node, Any] = {}
        self._float: dict[fx.Node, list[Any]] = {}
        self._low: dict[fx.Node, list[Any]] = {}
        for value in self.lifted.inputs:
            arrays = [array_to_torch(feed[value.name or ""]) for feed in feeds]
            node = self.lifted.values[value]
            self._float[node] = arrays
            self._low[node] = self._rounded(node, arrays)

    def run(self, visit: Visit) -> None:
        """Advance to the end; ``visit`` is called before each layer with a rounded weight."""
        with torch.no_grad():
            nodes = list(self.lifted.module.graph.nodes)
            last = _last_readers(nodes)
            for call in nodes:
                if call.op == "get_attr":
                    self._shared[call] = getattr(self.lifted.module, str(call.target))
                elif call.op == "call_function":
                    self._advance(call, visit)
                for done in last.get(call, ()):
                    self._float.pop(done, None)
                    self._low.pop(done, None)

    def float_result(self, node: ir.Node) -> Tensors:
        """What the node gives in the float model."""
        return self._float[self.lifted.calls[node]]

    def ahead(self, node: ir.Node, value: ir.Value) -> Tensors:
        """A value of the float model behind ``node``, along nodes that read constants only."""
        target = self.lifted.values[value]
        chain = [target]
        start = self.lifted.calls[node]
        while chain[-1] is not start:
            chain.append(next(a for a in chain[-1].all_input_nodes if a.op != "get_attr"))
        found = {start: self._float[start]}
        for call in reversed(chain[:-1]):
            found[call] = [self._call(call, index, found) for index in range(self._count)]
        return found[target]

    def quantized_result(self, layer: Layer) -> Tensors:
        """What the layer gives in the quantized model, without its shift."""
        call = self.lifted.calls[layer.node]
        return [self._low_call(call, layer.weight, index) for index in range(self._count)]

    def _advance(self, call: fx.Node, visit: Visit) -> None:
        self._float[call] = [self._call(call, i, self._float) for i in range(self._count)]
        node = self._nodes.get(call)
        weight = self.weights.get((node.name or "", 1)) if node is not None else None
        if node is None or weight is None or node.op_type not in ("Conv", "MatMul"):
            results = [self._call(call, i, self._low) for i in range(self._count)]
        else:
            value = node.inputs[0]
            assert value is not None
            source = self.lifted.values[value]
            constant = source in self._shared
            inputs = [self._shared[source]] * self._count if constant else self._low[source]
            layer = Layer(self, node, inputs, weight)
            with torch.enable_grad():
                visit(layer)
            self.weights[node.name or "", 1] = layer.weight
            results = self.quantized_result(layer)
            if layer.shift is not None:
                shift = torch.from_numpy(layer.shift).to(results[0].dtype)
                form = (-1, *(1,) * (results[0].ndim - 2)) if node.op_type == "Conv" else (-1,)
                results = [result + shift.reshape(form) for result in results]
        self._low[call] = self._rounded(call, results)

    def _rounded(self, call: fx.Node, tensors: list[Any]) -> list[Any]:
        rounder = self._rounders.get(call)
        if rounder is None:
            return tensors
        return [rounder(tensor.float()).to(tensor.dtype) for tensor in tensors]

    def _call(self, call: fx.Node, index: int, env: Mapping[fx.Node, list[Any]]) -> Any:
        args, kwargs = self._arguments(call, index, env)
        assert callable(call.target)
        return call.target(*args, **kwargs)

    def _low_call(self, call: fx.Node, weight: QTensor, index: int) -> Any:
        args, kwargs = self._arguments(call, index, self._low)
        swapped = torch.from_numpy(weight.dequantize()).to(args[1].dtype)
        assert callable(call.target)
        return call.target(args[0], swapped, *args[2:], **kwargs)

    def _arguments(
        self, call: fx.Node, index: int, env: Mapping[fx.Node, list[Any]]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def find(node: fx.Node) -> Any:
            return self._shared[node] if node in self._shared else env[node][index]

        found: tuple[tuple[Any, ...], dict[str, Any]] = (
            fx.node.map_arg(call.args, find),
            fx.node.map_arg(call.kwargs, find),
        )
        return found


def _last_readers(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Which values nobody reads behind each node."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[source] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for source, reader in last.items():
        found.setdefault(reader, []).append(source)
    return found


def samples_of(feeds: Sequence[Feed]) -> int:
    """Samples of some feeds: sum of the leading sizes of their first inputs."""
    return sum(next((len(x) for x in feed.values() if x.ndim), 1) for feed in feeds)


def first_samples(feeds: Iterable[Feed], limit: int) -> list[Feed]:
    """As many feeds as hold ``limit`` samples."""
    found: list[Feed] = []
    for feed in feeds:
        found.append(feed)
        if samples_of(found) >= limit:
            break
    return found

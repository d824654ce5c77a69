"""The lifted form of a block: a torch module, and which of its parts stands for which IR object."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import fx, nn

from qcompiler.lift.quantizers import (
    DynamicFakeQuantize,
    FakeQuantize,
    GivenIntegers,
    LearnedRounding,
)
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec

__all__ = ["Lifted", "commit"]


@dataclasses.dataclass(eq=False)
class Lifted:
    """A block as a differentiable module, made by :func:`~qcompiler.lift.lift`.

    Attributes:
        module: Takes ``inputs`` by position and returns ``outputs`` as a tuple. Its printed code
            shows every call, and every quantizer as a module call.
        params: The trainable constants.
        inputs: What the module takes.
        outputs: What it returns.
        values: The graph node that stands for each value.
        calls: The graph node that computes each IR node.
        quantizers: What :meth:`quantize_weight` and :meth:`quantize_activation` attached, by value.
    """

    module: fx.GraphModule
    params: dict[ir.Value, nn.Parameter]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    values: dict[ir.Value, fx.Node]
    calls: dict[ir.Node, fx.Node]
    quantizers: dict[ir.Value, nn.Module] = dataclasses.field(default_factory=dict)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module."""
        found: tuple[torch.Tensor, ...] = self.module(*inputs)
        return found

    def release(self) -> None:
        """Let go of the constants: the module stands in cycles, which Python breaks late."""
        for module in self.module.modules():
            for name in [*module._parameters, *module._buffers]:
                delattr(module, name)
        self.params.clear()

    def constant(self, value: ir.Value) -> torch.Tensor:
        """The parameter or buffer of a constant of the block; ``KeyError`` if it has none."""
        node = self.values[value]
        if node.op != "get_attr":
            raise KeyError(value.name)
        tensor: torch.Tensor = getattr(self.module, str(node.target))
        return tensor

    def quantize_weight(
        self,
        value: ir.Value,
        tensor: QTensor,
        *,
        rounding: Literal["given", "nearest", "learned"] = "given",
        learn_scale: bool = False,
        readers: Collection[ir.Node] | None = None,
    ) -> FakeQuantize | GivenIntegers | LearnedRounding:
        """Put a fake quantizer between a constant and its readers.

        Args:
            value: The constant; readers see it quantized, the constant itself stays.
            tensor: Gives scales, zero points and spec, and with ``given`` the integers.
            rounding: ``given`` keeps the tensor's integers, whatever the constant becomes;
                ``nearest`` rounds the constant anew each time, as training it needs; ``learned``
                learns whether each weight goes down or up, at fixed scales.
            learn_scale: Make the scale a parameter; only with ``nearest``.
            readers: Quantize only for these nodes; None means all.
        """
        if learn_scale and rounding != "nearest":
            raise ValueError(f"the scale cannot be learned with rounding={rounding!r}")
        weight = self.constant(value)
        quantizer: FakeQuantize | GivenIntegers | LearnedRounding
        if rounding == "given":
            quantizer = GivenIntegers(tensor)
        elif rounding == "learned":
            quantizer = LearnedRounding(weight, tensor)
        else:
            quantizer = FakeQuantize(
                tensor.scale, tensor.zero_point, tensor.spec, learn_scale=learn_scale
            )
        self._attach(value, quantizer.to(weight.device), readers)
        return quantizer

    def put_behind(self, value: ir.Value, module: nn.Module) -> None:
        """Let a module of the caller's stand between a constant and all its readers."""
        self._attach(value, module, None)

    def stand_in(self, value: ir.Value, module: nn.Module) -> None:
        """Let a module that takes nothing give a constant, which is let go of."""
        source, graph = self.values[value], self.module.graph
        target = str(source.target)
        name = _free_name(self.module, f"given_{source.name}")
        self.module.add_submodule(name, module)
        with graph.inserting_after(_end_of_constants(source)):
            call = graph.call_module(name, ())
        source.replace_all_uses_with(call)
        graph.erase_node(source)
        if not any(node.op == "get_attr" and node.target == target for node in graph.nodes):
            delattr(self.module, target)
        self.module.recompile()
        self.values[value] = call

    def quantize_activation(
        self,
        value: ir.Value,
        scale: npt.NDArray[np.floating] | float | None,
        zero_point: npt.NDArray[np.integer] | int | None,
        spec: QSpec,
        *,
        learn_scale: bool = False,
        readers: Collection[ir.Node] | None = None,
    ) -> FakeQuantize | DynamicFakeQuantize:
        """Put a fake quantizer between a value and its readers.

        Args:
            value: An input or a result of the block.
            scale: Broadcasts against the value; not read when the spec is dynamic.
            zero_point: Shape of ``scale``; None is 0.
            spec: How the value is quantized.
            learn_scale: Make the scale a parameter.
            readers: Quantize only for these nodes; None means all, the block's outputs included.
        """
        quantizer: FakeQuantize | DynamicFakeQuantize
        if spec.dynamic:
            quantizer = DynamicFakeQuantize(spec)
        else:
            assert scale is not None, f"{spec} needs a scale"
            zero = None if zero_point is None else np.asarray(zero_point)
            quantizer = FakeQuantize(np.asarray(scale), zero, spec, learn_scale=learn_scale)
        self._attach(value, quantizer, readers)
        return quantizer

    def _attach(
        self, value: ir.Value, quantizer: nn.Module, readers: Collection[ir.Node] | None
    ) -> None:
        source, graph = self.values[value], self.module.graph
        name = _free_name(self.module, f"quantize_{source.name}")
        self.module.add_submodule(name, quantizer)
        with graph.inserting_after(_end_of_constants(source)):
            edge = graph.call_module(name, (source,))
        chosen = None if readers is None else {self.calls[node] for node in readers}
        for user in list(source.users):
            if user is not edge and (chosen is None or user in chosen):
                user.replace_input_with(source, edge)
        self.module.recompile()
        self.quantizers[value] = quantizer


def commit(lifted: Lifted) -> None:
    """Write the trainable constants back into the IR; those that did not change stay untouched.

    The tensors keep name, type and shape. What quantizers learned is not written: it belongs to
    the plan's weights and ranges, not to the float model.
    """
    for value, param in lifted.params.items():
        before = value.const_value
        assert before is not None, f"%{value.name} is no initializer any more"
        array = _to_numpy(param.detach(), before.dtype)
        if before.numpy().tobytes() != array.tobytes():
            value.const_value = ir.Tensor(array, dtype=before.dtype, name=before.name)


def _to_numpy(data: torch.Tensor, dtype: ir.DataType) -> npt.NDArray[Any]:
    data, wanted = data.cpu().contiguous(), dtype.numpy()
    if wanted.name.startswith("float") and wanted.itemsize > 1:
        return np.array(data.numpy())
    raw = data.view(torch.uint8).numpy().copy()  # numpy has no bfloat16 or 8-bit floats
    return np.asarray(raw.view(wanted).reshape(tuple(data.shape)))


def _end_of_constants(node: fx.Node) -> fx.Node:
    """Where the reader of an input or constant may stand first: behind all inputs and constants."""
    while node.op in ("placeholder", "get_attr") and node.next.op in ("placeholder", "get_attr"):
        node = node.next
    return node


def _free_name(module: nn.Module, hint: str) -> str:
    name, count = hint, 0
    while hasattr(module, name):
        count += 1
        name = f"{hint}_{count}"
    return name

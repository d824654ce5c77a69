"""What a torch module is called with, to run it once and to export it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.pipeline.contract import Feed

__all__ = ["ExampleInputs", "batch_of", "doubled", "example_feed", "without_bfloat16"]


@dataclasses.dataclass(frozen=True, slots=True)
class ExampleInputs:
    """One call of a module.

    Attributes:
        args: Positional inputs, as the user gave them.
        kwargs: Keyword inputs.
        named: The same by name of a parameter of ``forward``, in its order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]

    @classmethod
    def bind(cls, module: torch.nn.Module, example: Any, source: str) -> ExampleInputs:
        """Fit example inputs to ``forward``.

        Args:
            module: The module.
            example: A tensor, a tuple or list of positional inputs, or a dict of keyword inputs;
                numpy arrays are taken as tensors.
            source: The user's name for the model.

        Raises:
            QcError: QC708 when there are none, QC202 when they do not fit ``forward``.
        """
        signature = inspect.signature(module.forward)
        if example is None:
            raise QcError(
                Code.NEEDS_EXAMPLE_INPUTS,
                source,
                "a torch module does not say what it is called with",
                f"pass example_inputs for forward{signature}",
            )
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(example, Mapping):
            kwargs = {str(name): _tensor(item) for name, item in example.items()}
        elif isinstance(example, tuple | list):
            args = tuple(_tensor(item) for item in example)
        else:
            args = (_tensor(example),)
        try:
            named = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise QcError(
                Code.FEED_NAME,
                source,
                f"example_inputs do not fit forward{signature}: {error}",
                "pass a tuple of positional inputs or a dict of keyword inputs",
            ) from error
        return cls(args, kwargs, named)

    def map(self, function: Callable[[torch.Tensor], Any]) -> ExampleInputs:
        """The same call with every tensor mapped."""

        def leaf(item: Any) -> Any:
            return function(item) if isinstance(item, torch.Tensor) else item

        return ExampleInputs(*pytree.tree_map(leaf, (self.args, self.kwargs, self.named)))

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of ``forward``'s parameters."""
        return [item for item in pytree.tree_leaves(self.named) if isinstance(item, torch.Tensor)]


def _tensor(item: Any) -> Any:
    return torch.from_numpy(item.copy()) if isinstance(item, np.ndarray) else item


def without_bfloat16(
    module: torch.nn.Module, inputs: ExampleInputs, source: str
) -> tuple[torch.nn.Module, ExampleInputs, list[Diagnostic]]:
    """A float32 copy of a bfloat16 module and its inputs: the runtime has no bfloat16 kernels."""
    if not any(item.dtype is torch.bfloat16 for item in module.parameters()):
        return module, inputs, []
    wide = inputs.map(lambda x: x.float() if x.dtype is torch.bfloat16 else x)
    told = Diagnostic(Code.CAST_TO_FLOAT, source, "the bfloat16 weights were converted to float32")
    return copy.deepcopy(module).float(), wide, [told]


def batch_of(inputs: ExampleInputs) -> int | None:
    """The size that all inputs have along axis 0; None when they differ."""
    sizes = {item.shape[0] if item.ndim else None for item in inputs.tensors()}
    return sizes.pop() if len(sizes) == 1 else None


def doubled(inputs: ExampleInputs) -> ExampleInputs:
    """A batch of one twice, any other as it is: torch.export takes a size of 1 for a constant."""
    return inputs.map(lambda x: torch.cat([x, x])) if batch_of(inputs) == 1 else inputs


def example_feed(model: ir.Model, tensors: Sequence[torch.Tensor]) -> Feed | None:
    """Tensors of the example inputs under the names of the graph inputs, in order.

    None when they do not correspond one to one (an input that the graph does not use was dropped).
    """
    feed: dict[str, npt.NDArray[Any]] = {}
    if len(tensors) != len(model.graph.inputs):
        return None
    for value, tensor in zip(model.graph.inputs, tensors, strict=True):
        if tensor.dtype is torch.bfloat16:
            return None  # numpy has no such type, and no session takes it
        array = tensor.detach().cpu().numpy()
        fits = value.shape is not None and value.shape.rank() == array.ndim
        if value.name is None or value.dtype is None or not fits:
            return None
        if value.dtype.numpy() != array.dtype:
            return None
        feed[value.name] = array
    return feed

"""Front end for ``torch.nn.Module`` and ``torch.fx.GraphModule``."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.frontends.admission import admit, with_diagnostics
from qcompiler.frontends.opened import Kind, Opened
from qcompiler.frontends.torch.example_inputs import (
    ExampleInputs,
    batch_of,
    doubled,
    example_feed,
    without_bfloat16,
)
from qcompiler.frontends.torch.export import (
    evaluation_mode,
    export_to_ir,
    kept_buffers,
    output_names,
    run_once,
    stateful,
)

__all__ = ["open_module"]

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.")


def open_module(module: torch.nn.Module, example_inputs: Any) -> Opened:
    """Export a module, in evaluation mode, with a dynamic batch where torch can.

    The batch is axis 0 of every input tensor, when they all have the same size there. For other
    dynamic axes pass a ``torch.export.ExportedProgram``.

    Raises:
        QcError: QC708 without example inputs, QC202 when they do not fit, QC705 when the module
            does not run or does not export, as one of TorchScript never does.
    """
    source = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise QcError(
            Code.NO_EXPORT,
            source,
            "torch exports no module of TorchScript (torch.jit.trace, torch.jit.script)",
            "pass the module that it was made of, or an ONNX file of it",
        )
    kind: Kind = "fx" if isinstance(module, torch.fx.GraphModule) else "torch"
    inputs = ExampleInputs.bind(module, example_inputs, source)
    module, inputs, cast = without_bfloat16(module, inputs, source)
    _refuse_quantized(module, source)
    with evaluation_mode(module):
        with kept_buffers(module) as changed:
            result = run_once(module, inputs, source)
        names = output_names(result, tuple(inputs.named))
        try:
            model, notes = _export_with_batch(module, inputs, source, names)
        except QcError as error:
            raise _blamed_on(result, error.diagnostic) from error
    opened = admit(model, kind, source, example_feed(model, inputs.tensors()))
    return with_diagnostics(opened, *cast, *notes, *stateful(changed, source))


def _refuse_quantized(module: torch.nn.Module, source: str) -> None:
    """Refuse a module that torch.ao has converted: its packed weights export to nothing."""
    for name, item in module.named_modules():
        if type(item).__module__.startswith(_QUANTIZED):
            raise QcError(
                Code.UNSUPPORTED_INPUT,
                source,
                f"{name or 'it'} is a {type(item).__name__} of {type(item).__module__}: the module "
                "is quantized already, in a form that does not export",
                "give the float module that it was made of",
            )


def _blamed_on(result: Any, found: Diagnostic) -> QcError:
    """The same error; where ``forward`` gives what is no tensor, that is the likely reason."""
    leaves = pytree.tree_leaves(result)
    others = sorted({type(x).__name__ for x in leaves if not isinstance(x, torch.Tensor | None)})
    message, hint = found.message, found.hint
    if others:
        message = f"forward returns {', '.join(others)} besides tensors; {message}"
        hint = (
            "return tensors, in tuples, lists or dicts; a dataclass of tensors becomes known by "
            "torch.export.register_dataclass"
        )
    return QcError(found.code, found.where, message, hint, **found.values)


def _export_with_batch(
    module: torch.nn.Module, inputs: ExampleInputs, source: str, names: list[str]
) -> tuple[ir.Model, list[Diagnostic]]:
    if batch_of(inputs) is None:
        reason = "the inputs do not all have the same size along axis 0"
        return export_to_ir(module, inputs, source, outputs=names), [_fixed(source, reason)]
    dynamic = pytree.tree_map(
        lambda x: {0: "batch"} if isinstance(x, torch.Tensor) else None, inputs.named
    )
    try:
        model = export_to_ir(
            module, doubled(inputs), source, dynamic=dynamic, outputs=names, any_size=True
        )
    except QcError as error:
        fixed = export_to_ir(module, inputs, source, outputs=names)
        return fixed, [_fixed(source, error.diagnostic.message)]
    if any(isinstance(value.shape[0], int) for value in model.graph.inputs if value.shape):
        return model, [_fixed(source, "torch found that the batch must be constant")]
    return model, []


def _fixed(source: str, reason: str) -> Diagnostic:
    return Diagnostic(
        Code.FIXED_SHAPE,
        source,
        f"the batch size is fixed to that of the example inputs: {reason}",
        "pass a torch.export.ExportedProgram with dynamic_shapes to choose the dynamic axes",
    )

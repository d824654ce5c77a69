"""``torch.onnx.export(dynamo=True)``, quiet, with errors that say where and why.

Opset 23: measured with torch 2.13 on a BERT with sdpa attention, the exporter writes
``ai.onnx.Attention`` for each attention there, and at opset 20 eleven operators with an IsNaN guard
(120 nodes against 87); Gelu and LayerNormalization are operators at both.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.frontends.torch.example_inputs import ExampleInputs
from qcompiler.frontends.torch.rotary_caches import widen_rotary_caches
from qcompiler.ir.edit import unique

__all__ = [
    "evaluation_mode", "export_to_ir", "kept_buffers", "output_names", "run_once", "stateful",
]  # fmt: skip

OPSET = 23
_LARGE_SIZE = 1 << 31  # limits beyond it are those of integers
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def export_to_ir(
    module: torch.nn.Module | torch.export.ExportedProgram,
    inputs: ExampleInputs | None,
    source: str,
    *,
    dynamic: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    any_size: bool = False,
) -> ir.Model:
    """The exported model.

    Args:
        module: A module in evaluation mode, or a program.
        inputs: What to call the module with; None for a program.
        source: The user's name for the model.
        dynamic: Axis names per input, shaped like ``inputs.named``; None for fixed shapes.
        outputs: Names of the flattened outputs.
        any_size: Refuse an export that holds for some sizes of the dynamic axes only: a module that
            branches on a size is exported as it is for that of ``inputs``.

    Raises:
        QcError: QC705 with the place and the first lines of the exporter's reason.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                () if inputs is None else inputs.args,
                kwargs=None if inputs is None else inputs.kwargs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=None if dynamic is None else dict(dynamic),
                output_names=None if outputs is None else list(outputs),
                verbose=False,
            )
    # the exporter runs the user's own code, which may raise anything
    except Exception as error:
        raise export_error(error, source) from error
    assert program is not None, "export with dynamo=True gives a program"
    if any_size and (limits := _size_limits(program)):
        raise QcError(
            Code.NO_EXPORT,
            source,
            f"the module computes otherwise for other sizes: torch exports it for {limits} alone",
            "make the control flow independent of sizes",
        )
    model: ir.Model = program.model
    widen_rotary_caches(model)
    _give_back_names(model)
    return model


def _size_limits(program: Any) -> str:
    """What sizes of the inputs' dynamic axes the exported program holds for; "" for all.

    torch takes a size of 0 or 1 for special, so from 2 on is from anything on.
    """
    exported = program.exported_program
    symbols = {
        str(size)
        for node in exported.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
        for size in node.meta["val"].shape
        if isinstance(size, torch.SymInt)
    }
    found = []
    for symbol, limits in exported.range_constraints.items():
        if str(symbol) not in symbols:
            continue
        low, high = limits.lower, limits.upper
        if low > 2:
            found.append(f"sizes from {low} on")
        if high.is_number and high.is_finite and high < _LARGE_SIZE:
            found.append(f"sizes up to {high}")
    return " and ".join(found)


def _give_back_names(model: ir.Model) -> None:
    """Let inputs that are outputs, too, have their names again.

    The exporter names them ``x_orig``, and the outputs, which then get names of their own, ``x``.
    """
    names = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    names.update(output.name for node in model.graph for output in node.outputs)
    for value in model.graph.inputs:
        own = (value.name or "").removesuffix("_orig")
        readers = [use.node for use in value.uses()]
        is_output = any(n.op_type == "Identity" and n.outputs[0].is_graph_output() for n in readers)
        if is_output and own not in names:
            value.name = own


def export_error(error: BaseException, source: str) -> QcError:
    """A QC705 from whatever the exporter raised: the innermost place, reason and operator."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    texts = [_ANSI.sub("", str(item)) for item in chain]
    everything = "\n".join(texts)
    reason = next((_first_lines(text) for text in reversed(texts) if text.strip()), "")
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", everything)
    if operator:
        reason = f"ONNX has no form of the operator {operator[1]}"
        hint = "replace the operator in the module, or export it with a custom translation table"
    else:
        if "data-dependent" in reason or "data-dependent" in everything[:2000]:
            reason = f"its control flow depends on the values of tensors: {reason}"
        hint = (
            "make the control flow independent of tensor values (torch.cond, torch.where), check "
            "example_inputs, or pass a torch.export.ExportedProgram"
        )
    return QcError(
        Code.NO_EXPORT,
        ", ".join([source, *_places(everything, error)]),
        f"torch does not export it: {reason}",
        hint,
        error=type(chain[-1]).__name__,
    )


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[:3])[:500].rstrip(".")


def _places(text: str, error: BaseException) -> list[str]:
    """Where it happened: the FX node, and the user's line."""
    places = []
    node = re.search(r"translating node (%\S+)[^\n]*?target=([\w.]+)", text)
    if node:
        places.append(f"node {node[1]} ({node[2].removeprefix('torch.ops.')})")
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    lines += [(frame.filename, str(frame.lineno), frame.function) for frame in _frames(error)]
    own = [item for item in lines if "/torch/" not in item[0] and "onnxscript" not in item[0]]
    for file, line, function in own[-1:]:
        places.append(f"{function} at {file}:{line}")
    return places


def _frames(error: BaseException) -> Iterator[inspect.Traceback]:
    here = __file__
    item: BaseException | None = error
    while item is not None:
        if item.__traceback__ is not None:
            for frame in inspect.getinnerframes(item.__traceback__, context=0):
                if frame.function == "forward" and frame.filename != here:
                    yield inspect.Traceback(
                        frame.filename, frame.lineno, frame.function, None, None
                    )
        item = item.__cause__


@contextlib.contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """All submodules in evaluation mode, each put back as it was.

    Flags are set directly: exported graph modules refuse ``eval()``.
    """
    training = [item for item in module.modules() if item.training]
    for item in training:
        item.training = False
    try:
        yield
    finally:
        for item in training:
            item.training = True


@contextlib.contextmanager
def kept_buffers(module: torch.nn.Module) -> Iterator[list[str]]:
    """All buffers as they were, whatever runs; the list gets the names of those that changed."""
    before = [
        (name, owner, key, tensor, tensor.detach().clone())
        for name, owner in module.named_modules()
        for key, tensor in owner._buffers.items()
        if tensor is not None
    ]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, owner, key, tensor, value in before:
            now = owner._buffers.get(key)
            if now is None or now.shape != value.shape or not bool(torch.eq(now, value).all()):
                changed.append(f"{name}.{key}" if name else key)
            owner._buffers[key] = tensor
            with torch.no_grad():
                tensor.copy_(value)


def stateful(changed: Sequence[str], source: str) -> list[Diagnostic]:
    """QC718 for buffers that a module changes when it runs; nothing where there are none."""
    if not changed:
        return []
    return [
        Diagnostic(
            Code.BUFFERS_CHANGE,
            source,
            f"forward changes {', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}: the "
            "artifact computes each time as if for the first time",
            "make what changes an input and an output",
            {"buffers": list(changed)},
        )
    ]


def run_once(module: torch.nn.Module, inputs: ExampleInputs, source: str) -> Any:
    """The module's own result on the example inputs.

    Raises:
        QcError: QC705 when its forward fails, which an export would tell less clearly.
    """
    try:
        with _quiet(), torch.no_grad():
            return module(*inputs.args, **inputs.kwargs)
    # the user's own code, which may raise anything
    except Exception as error:
        raise QcError(
            Code.NO_EXPORT,
            ", ".join([source, *_places("", error)]),
            f"the module fails on the example inputs: {type(error).__name__}: "
            f"{_first_lines(str(error))}",
            "give example_inputs that the module runs on",
        ) from error


def output_names(result: Any, taken: Sequence[str]) -> list[str]:
    """A name per tensor of a result: the keys that lead to it, else ``output``, ``output_1`` ...

    Args:
        result: What ``forward`` returned, or the same structure with other leaves.
        taken: Names that are not free: those of the inputs.
    """
    names: list[str] = []
    used = set(taken)
    for path, leaf in pytree.tree_flatten_with_path(result)[0]:
        if leaf is None:
            continue
        words = [str(word) for word in map(_key_word, path)]
        stem = ".".join(words) if words and not words[0].isdigit() else "output"
        names.append(unique(stem, used))
    return names


def _key_word(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines or prints of the exporter; what matters comes back as an exception.

    Logging is disabled as a whole, because the exporter makes loggers as it goes.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""What every model goes through at the door, whichever way it came: checked, inlined, named.

Afterwards: no model-local functions, no Constant nodes (except as graph outputs), no initializer
that is also an input, nodes in topological order, every node and value named, origins marked,
weights finite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.frontends.finite import check_finite
from qcompiler.frontends.old_opsets import OLDEST_OPSET, modernize
from qcompiler.frontends.opened import Kind, Opened
from qcompiler.ir.edit import name_everything
from qcompiler.ir.legality import violations
from qcompiler.ir.provenance import forget_decisions, mark_origins
from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.ir.walk import all_graphs, all_nodes, captured
from qcompiler.pipeline.contract import Feed

__all__ = ["admit", "is_quantized"]

_VARIADIC = 1000  # more inputs than any operator names
_FIRST_IR_WITH_OPTIONAL_INPUTS = 4  # before it the format wanted every initializer as an input

# Operators that compute on, or make, quantized data. DequantizeLinear alone is enough: weight-only.
_QUANTIZED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulFpQ4",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QMoE",
        "QuantizeLinear",
    }
)


def admit(model: ir.Model, kind: Kind, source: str, example: Feed | None = None) -> Opened:
    """Make ``model`` (ours to edit) what the compiler expects, or refuse it.

    Raises:
        QcError: QC704 opset, QC710 graph, QC301 weights.
    """
    diagnostics = _check_opset(model, source)
    if model.functions:
        _inline(model, source)
    _load_tensors(model, source)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    diagnostics += _freeze_default_inputs(model, source)
    _free_negative_dims(model)
    _sort(model, source)
    name_everything(model)
    _check_graph(model, source)
    check_finite(model, source)
    infer_shapes(model)
    forget_decisions(model)
    mark_origins(model)
    return Opened(model, example, kind, source, is_quantized(model), tuple(diagnostics))


def with_diagnostics(opened: Opened, *diagnostics: Diagnostic) -> Opened:
    """The same with more to tell."""
    return dataclasses.replace(opened, diagnostics=(*opened.diagnostics, *diagnostics))


def is_quantized(model: ir.Model) -> bool:
    """Whether some node computes on quantized data."""
    return any(
        node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QOrdered"))
        for node in all_nodes(model)
    )


def _inline(model: ir.Model, source: str) -> None:
    try:
        common.InlinePass()(model)
    except ir.passes.PreconditionError as error:
        raise QcError(
            Code.INVALID_GRAPH,
            source,
            f"its functions cannot be inlined: {error}",
            "ONNX allows no function that calls itself",
        ) from error


def _check_opset(model: ir.Model, source: str) -> list[Diagnostic]:
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if version is None:
        if any(node.domain in ("", "ai.onnx") for node in all_nodes(model)):
            raise QcError(
                Code.UNKNOWN_OPSET, source, "the model does not say which ONNX opset it uses"
            )
        return []
    if version > newest:
        raise QcError(
            Code.UNKNOWN_OPSET,
            source,
            f"the model uses opset {version}, the installed onnx {onnx.__version__} knows "
            f"opsets up to {newest}",
            "install a newer onnx, or export with an older opset",
            opset=version,
        )
    if "ai.onnx" in model.opset_imports:  # two spellings of one domain; the rest knows one
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    for node in all_nodes(model):
        if node.domain == "ai.onnx":
            node.domain = ""
    return modernize(model, version, source)


def _load_tensors(model: ir.Model, source: str) -> None:
    """Let initializers be plain arrays: a protobuf tensor copies its bytes each time it is read."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or isinstance(
                tensor,
                ir.Tensor | ir.ExternalTensor | ir.StringTensor | ir.PackedTensor | ir.LazyTensor,
            ):
                continue
            if tensor.dtype is not ir.DataType.STRING:
                value.const_value = ir.Tensor(
                    _elements(tensor, source),
                    dtype=tensor.dtype,
                    name=tensor.name,
                    doc_string=tensor.doc_string,
                )


def _elements(tensor: ir.TensorProtocol, source: str) -> npt.NDArray[Any]:
    try:
        return tensor.numpy()
    except (ValueError, TypeError) as error:
        raise QcError(
            Code.INVALID_GRAPH,
            source,
            f"initializer {tensor.name!r} does not hold what its shape {tensor.shape} and type "
            f"{tensor.dtype} say: {error}",
            "the file is damaged; export it again",
        ) from error


def _freeze_default_inputs(model: ir.Model, source: str) -> list[Diagnostic]:
    """Initializers that are also inputs become constants; newer files are told of."""
    both = [value.name for value in model.graph.inputs if value.name in model.graph.initializers]
    if not both:
        return []
    common.RemoveInitializersFromInputsPass()(model)
    if model.ir_version < _FIRST_IR_WITH_OPTIONAL_INPUTS:
        return []
    return [
        Diagnostic(
            Code.DEFAULT_INPUT,
            source,
            f"{len(both)} inputs with default values became constants: "
            + ", ".join(str(name) for name in both[:5])
            + (", ..." if len(both) > 5 else ""),
            "remove the initializer to keep an input",
            {"inputs": [str(name) for name in both]},
        )
    ]


def _free_negative_dims(model: ir.Model) -> None:
    """Older converters write -1 for "any size"; the format wants no value at all."""
    for graph in all_graphs(model):
        for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
            if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
                value.shape = ir.Shape(
                    [None if isinstance(d, int) and d < 0 else d for d in value.shape]
                )


def _sort(model: ir.Model, source: str) -> None:
    if not any(_unsorted(graph) for graph in all_graphs(model)):
        return
    try:
        model.graph.sort()
    except ValueError as error:
        raise QcError(
            Code.INVALID_GRAPH,
            source,
            "the graph has a cycle",
            "a node may not read its own output",
        ) from error


def _unsorted(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        for value in (*node.inputs, *captured(node)):
            producer = None if value is None else value.producer()
            if producer is not None and producer.graph is graph and producer not in seen:
                return True
        seen.add(node)
    return False


def _check_graph(model: ir.Model, source: str) -> None:
    for sentence in (
        *_unknown_operators(model),
        *_misused_operators(model),
        *_untyped_inputs(model),
        *violations(model),
    ):
        raise QcError(Code.INVALID_GRAPH, source, sentence, "onnx.checker.check_model tells more")


def _unknown_operators(model: ir.Model) -> Iterator[str]:
    version = model.opset_imports.get("", OLDEST_OPSET)
    for op_type in {node.op_type: None for node in all_nodes(model) if node.domain == ""}:
        if not onnx.defs.has(op_type):
            known = {schema.name for schema in onnx.defs.get_all_schemas()}
            yield f"the standard has no operator {op_type!r}; {nearest(op_type, known)}"
        elif not _exists(op_type, version):
            yield f"operator {op_type!r} does not exist in opset {version}"


def _misused_operators(model: ir.Model) -> Iterator[str]:
    """Nodes whose inputs, outputs or attributes are none that their operator has."""
    version = model.opset_imports.get("", OLDEST_OPSET)
    for node in all_nodes(model):
        if node.domain or not _exists(node.op_type, version):
            continue
        schema = onnx.defs.get_schema(node.op_type, version)
        where = f"{node.name} ({node.op_type})"
        given = len(node.inputs)
        while given and node.inputs[given - 1] is None:
            given -= 1
        if not schema.min_input <= given <= schema.max_input:
            yield f"{where} has {given} inputs, wanted {_span(schema.min_input, schema.max_input)}"
        if not schema.min_output <= len(node.outputs) <= schema.max_output:
            wanted = _span(schema.min_output, schema.max_output)
            yield f"{where} has {len(node.outputs)} outputs, wanted {wanted}"
        for name, wanted in schema.attributes.items():
            attr = node.attributes.get(name)
            if attr is None and wanted.required:
                yield f"{where} lacks the attribute {name!r}"
            elif attr is not None and attr.type.name != wanted.type.name:
                yield f"{where} has {name!r} of type {attr.type.name}, wanted {wanted.type.name}"


def _span(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} or more" if most > _VARIADIC else f"{least} to {most}"


def _exists(op_type: str, version: int) -> bool:
    try:
        return not onnx.defs.get_schema(op_type, version).deprecated
    except onnx.defs.SchemaError:
        return False


def _untyped_inputs(model: ir.Model) -> Iterator[str]:
    for value in model.graph.inputs:
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            yield f"input {value.name!r} has no element type, or is no tensor"
    if not model.graph.outputs:
        yield "the graph has no output"

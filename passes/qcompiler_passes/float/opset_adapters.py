"""How a node of an older opset is written in a newer one.

``ADAPTERS[(operator, version)]`` rewrites a node, in place or by a few new ones, when a model
passes from opset ``version - 1`` to ``version``, in which the operator's definition changed. An
adapter returns None, or the reason why it cannot. Operators whose definition changed without an
adapter must accept the old node as it is, which :func:`misfit` checks against the schemas.

Source: https://onnx.ai/onnx/operators/ (the page of each operator compares its versions), and
https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant, replace

__all__ = ["ADAPTERS", "misfit", "since"]

Adapter = Callable[[ir.Node], "str | None"]


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None


def since(op_type: str, opset: int) -> int | None:
    """The version of the definition that ``opset`` uses; None when it has no such operator."""
    schema = _schema(op_type, opset)
    return None if schema is None else int(schema.since_version)


def misfit(node: ir.Node, old: int, new: int) -> str | None:
    """Why the node of opset ``old``, unchanged, is not the same node of opset ``new``, or None.

    It is the same when every attribute still exists, no default it relies on changed, and its
    inputs and outputs are still that many. Changes of meaning that a schema does not show have an
    adapter.
    """
    before, after = _schema(node.op_type, old), _schema(node.op_type, new)
    if before is None or after is None or after.deprecated:
        return f"{node.op_type} does not exist in opset {new}"
    for name in node.attributes:
        if name not in after.attributes:
            return f"{node.op_type} of opset {new} has no attribute {name!r}"
    for name, attr in after.attributes.items():
        if name in node.attributes:
            continue
        if attr.required:
            return f"{node.op_type} of opset {new} needs attribute {name!r}"
        known = before.attributes.get(name)
        if known is not None and _default(known) != _default(attr):
            return f"{node.op_type} of opset {new} has another default of {name!r}"
    if not after.min_input <= len(node.inputs) <= after.max_input:
        return f"{node.op_type} of opset {new} takes another number of inputs"
    if len(node.outputs) > after.max_output:
        return f"{node.op_type} of opset {new} has fewer outputs"
    return None


def _default(attr: onnx.defs.OpSchema.Attribute) -> bytes:
    data: bytes = attr.default_value.SerializeToString()
    return data


def _attribute_to_input(node: ir.Node, name: str) -> None:
    """Move an attribute of integers to a constant input, the second."""
    attr = node.attributes.pop(name, None)
    if attr is None:
        return
    assert node.graph is not None, "a node of a model lies in a graph"
    graph = node.graph
    assert isinstance(graph, ir.Graph), "functions are inlined at the door"
    array = np.asarray(attr.as_ints(), np.int64)
    node.resize_inputs(max(2, len(node.inputs)))
    node.replace_input_with(1, add_initializer(graph, f"{node.name}/{name}", array))


def _axes(node: ir.Node) -> None:
    _attribute_to_input(node, "axes")


def _split_sizes(node: ir.Node) -> None:
    _attribute_to_input(node, "split")


def _split_count(node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _dropout(node: ir.Node) -> None:
    node.attributes.pop("ratio", None)  # no part in inference


def _softmax(node: ir.Node) -> None:
    """Before 13 all axes from ``axis`` on were normalised as one."""
    x = node.inputs[0]
    assert x is not None, "the first input is required"
    attr = node.attributes.get("axis")
    axis = 1 if attr is None else attr.as_int()
    if axis == -1 or (x.shape is not None and axis == x.shape.rank() - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph), "functions are inlined at the door"
    tape = Tape(graph, node.name or node.op_type)
    flat = tape.op("Flatten", x, axis=axis)
    result = tape.op(node.op_type, flat, axis=-1)
    shaped = tape.op("Reshape", result, tape.op("Shape", x))
    replace(graph, [node], tape.nodes, {node.outputs[0]: shaped})


def _batch_normalization(node: ir.Node) -> str | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "BatchNormalization gives statistics of training"
    node.resize_outputs(1)
    return None


def _resize(node: ir.Node) -> str | None:
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_half_pixel_for_nn":
        return "Resize of opset 13 has no mode tf_half_pixel_for_nn"
    for index in (1, 2):  # opset 11 wanted empty tensors where 13 wants nothing
        array = constant(node.inputs[index]) if index < len(node.inputs) else None
        if array is not None and array.size == 0:
            node.replace_input_with(index, None)
    return None


def _roi_align(node: ir.Node) -> None:
    name = "coordinate_transformation_mode"
    if name not in node.attributes:
        node.attributes[name] = ir.AttrString(name, "output_half_pixel")


def _grid_sample(node: ir.Node) -> None:
    attr = node.attributes.get("mode")
    old = "bilinear" if attr is None else attr.as_string()
    new = {"bilinear": "linear", "bicubic": "cubic"}.get(old, old)
    node.attributes["mode"] = ir.AttrString("mode", new)


def _group_normalization(node: ir.Node) -> str:
    return "GroupNormalization of opset 21 scales by channel, not by group"


def _each(names: Sequence[str], version: int, adapter: Adapter) -> dict[tuple[str, int], Adapter]:
    return {(name, version): adapter for name in names}


ADAPTERS: Mapping[tuple[str, int], Adapter] = {
    ("BatchNormalization", 14): _batch_normalization,
    ("Dropout", 12): _dropout,
    ("GridSample", 20): _grid_sample,
    ("GroupNormalization", 21): _group_normalization,
    ("Resize", 13): _resize,
    ("RoiAlign", 16): _roi_align,
    ("Split", 13): _split_sizes,
    ("Split", 18): _split_count,
    **_each(["LogSoftmax", "Softmax", "Hardmax"], 13, _softmax),
    **_each(["ReduceSum", "Squeeze", "Unsqueeze"], 13, _axes),
    **_each(
        [
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        ],
        18,
        _axes,
    ),
}

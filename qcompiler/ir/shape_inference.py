"""Fill in shapes and types that a model does not say, as far as ONNX can infer them.

Never fails: what cannot be inferred stays unknown, and what depends on it asks before use. Weights
are not copied (``onnx_ir`` leaves large ones out of the protobuf it infers on).
"""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common

from qcompiler.ir.walk import all_graphs, all_nodes, body_graphs

__all__ = ["infer_shapes", "unknown_shapes"]


def unknown_shapes(model: ir.Model) -> int:
    """How many node outputs have no known rank or type."""
    return sum(
        output.shape is None or output.dtype is None
        for node in all_nodes(model)
        for output in node.outputs
        if output.name
    )


def infer_shapes(model: ir.Model) -> bool:
    """Infer, when some shape is unknown; say whether fewer are unknown afterwards."""
    before = unknown_shapes(model)
    if not before:
        return False
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns when it gives up, which is no news to the user
    try:
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        logger.setLevel(level)
    _forget_elements(model)
    return unknown_shapes(model) < before


# Operators that give sequences or optionals, and OptionalGetElement, which may.
_CONTAINERS = frozenset(
    {
        "Optional",
        "OptionalGetElement",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    }
)


def _forget_elements(model: ir.Model) -> None:
    """Leave containers untyped, for ``onnx_ir`` takes the type of their elements for their own.

    The runtime finds the type by itself, and refuses a wrong one.
    """
    found: set[ir.Value] = set()
    for graph in reversed(list(all_graphs(model))):
        for node in graph:
            for index, output in enumerate(node.outputs):
                if _is_container(node, index, found):
                    found.add(output)
                    if isinstance(output.type, ir.TensorType):
                        output.type = output.shape = None


def _is_container(node: ir.Node, index: int, found: set[ir.Value]) -> bool:
    if node.domain:
        return False
    if node.op_type == "Identity":
        sources = node.inputs[:1]
    elif node.op_type in ("If", "Loop"):  # a Loop's body first says whether to go on
        at = index + (node.op_type == "Loop")
        sources = tuple(value for body in body_graphs(node) for value in body.outputs[at : at + 1])
    else:
        return node.op_type in _CONTAINERS
    return any(
        value in found or isinstance(value.type, ir.SequenceType | ir.OptionalType)
        for value in sources
        if value is not None
    )

"""Fill in shapes and types that a model does not say, as far as ONNX can infer them.

Never fails: what cannot be inferred stays unknown, and what depends on it asks before use. Weights
are not copied (``onnx_ir`` leaves large ones out of the protobuf it infers on).
"""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common

from qcompiler.ir.walk import all_nodes

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
    return unknown_shapes(model) < before

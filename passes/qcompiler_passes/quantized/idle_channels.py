"""Channels that a lowering added to an image, with weights of zero: they are taken off again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import add_initializer, constant, has_one_use

__all__ = ["drop_idle_channels"]

_X, _WEIGHT, _WEIGHT_ZERO_POINT = 0, 3, 5  # inputs of QLinearConv


def drop_idle_channels(graph: ir.Graph) -> bool:
    """Let a QLinearConv read the image behind which a Pad stands that only adds channels.

    The integers of the result are the same. ``to-ort`` adds such channels for kernels of some
    targets (``image_channels``); another target, or another sign of the integers, wants the model
    as it was.
    """
    changed = False
    for node in graph:
        if node.op_type != "QLinearConv" or node.attributes.get_int("group", 1) != 1:
            continue
        x = node.inputs[_X]
        pad = None if x is None else x.producer()
        idle = 0 if pad is None else _added_channels(pad)
        weight, zeros = (constant(node.inputs[i]) for i in (_WEIGHT, _WEIGHT_ZERO_POINT))
        if not idle or weight is None or zeros is None or zeros.any() or weight[:, -idle:].any():
            continue
        assert pad is not None
        source = node.inputs[_WEIGHT]
        assert source is not None
        narrow = np.ascontiguousarray(weight[:, :-idle])
        node.replace_input_with(_X, pad.inputs[0])
        node.replace_input_with(_WEIGHT, add_initializer(graph, f"{source.name}/used", narrow))
        changed = True
    return changed


def _added_channels(pad: ir.Node) -> int:
    """How many channels a Pad puts behind those of ``[N, C, H, W]``; 0 where it does more."""
    if pad.op_type != "Pad" or pad.domain or not has_one_use(pad.outputs[0]):
        return 0
    pads = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if pads is None or pads.shape != (8,) or len([x for x in pad.inputs if x is not None]) > 2:
        return 0
    behind = int(pads[5])
    return behind if behind > 0 and np.count_nonzero(pads) == 1 else 0

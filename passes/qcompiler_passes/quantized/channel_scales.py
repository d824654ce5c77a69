"""Move the scales per channel of an activation into the weights around it.

Some tools store what a depthwise convolution reads with a scale per channel, which no kernel takes.
Each channel of it is written by one filter and read by filters of its own, so with
``r[c] = s[c] / s0`` the filter that writes it can be divided, and those that read it multiplied, by
``r[c]``: the scales of the weights change, all integers stay, and one scale ``s0`` is left.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant, replace
from qcompiler.ir.provenance import inherit
from qcompiler.numerics.affine import quantize
from qcompiler_passes.quantized.integer_constants import integer_limits
from qcompiler_passes.quantized.stored import (
    BYTES,
    Stored,
    dequantize_of,
    is_dequantize,
    is_quantize,
    same,
)

__all__ = ["merge_channel_scales"]

_CHANNELS = 1  # axis of the channels of an image
Ratios = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class _Between:
    """A stored activation with several scales, and what stands around it.

    Attributes:
        stored: How its Q stores it.
        writer: The convolution that gives it.
        clamps: Relu and Clip in between, which saturation makes redundant.
        dequantizes: Its DQ nodes.
        readers: The depthwise convolutions that read it.
    """

    stored: Stored
    writer: ir.Node
    clamps: tuple[ir.Node, ...]
    dequantizes: tuple[ir.Node, ...]
    readers: tuple[ir.Node, ...]


def merge_channel_scales(graph: ir.Graph) -> bool:
    """Give one scale to every activation between a convolution and depthwise ones."""
    changed = False
    for node in list(graph):
        between = _between(node) if is_quantize(node) else None
        if between is not None:
            _merge(graph, node, between)
            changed = True
    return changed


def _between(node: ir.Node) -> _Between | None:
    stored = Stored.of(node)
    if stored is None or stored.axis != _CHANNELS or stored.block_size is not None:
        return None
    if stored.dtype not in BYTES or (stored.zero_point != stored.zero_point[0]).any():
        return None
    value, clamps = node.inputs[0], []
    while value is not None and _is_private(value):
        producer = value.producer()
        if producer is None or producer.op_type not in ("Relu", "Clip"):
            break
        if not _saturates(producer, stored):
            return None
        clamps.append(producer)
        value = producer.inputs[0]
    writer = None if value is None else value.producer()
    if value is None or writer is None or not _is_private(value):
        return None
    if writer.op_type != "Conv" or not _has_integers(writer) or not _has_known_bias(writer):
        return None
    dequantizes = [use.node for use in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or not all(
        is_dequantize(dq) and same(Stored.of(dq), stored) for dq in dequantizes
    ):
        return None
    readers = [use for dq in dequantizes for use in dq.outputs[0].uses()]
    if any(dq.outputs[0].is_graph_output() for dq in dequantizes) or not readers:
        return None
    channels = stored.scale.size
    if not all(use.idx == 0 and _is_depthwise(use.node, channels) for use in readers):
        return None
    return _Between(
        stored, writer, tuple(clamps), tuple(dequantizes), tuple(use.node for use in readers)
    )


def _is_private(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _has_integers(node: ir.Node) -> bool:
    dq = dequantize_of(node.inputs[1])
    stored = None if dq is None else Stored.of(dq)
    fits = stored is not None and stored.axis in (None, 0) and stored.block_size is None
    return fits and dq is not None and constant(dq.inputs[0]) is not None


def _has_known_bias(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    dq = dequantize_of(bias)
    if bias is None or constant(bias) is not None:
        return True
    return dq is not None and Stored.of(dq) is not None and constant(dq.inputs[0]) is not None


def _is_depthwise(node: ir.Node, channels: int) -> bool:
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) != channels:
        return False
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return shape is not None and shape[1] == 1 and _has_integers(node)


def _saturates(clamp: ir.Node, stored: Stored) -> bool:
    """Whether every channel's integers end where the clamp ends."""
    low, high = integer_limits(stored.dtype)
    bounds: list[npt.NDArray[np.generic] | None] = [np.zeros((), np.float32), None]
    if clamp.op_type == "Clip":
        given = [*clamp.inputs[1:], None, None][:2]
        bounds = [constant(value) for value in given]
        if any(v is not None and b is None for v, b in zip(given, bounds, strict=True)):
            return False
    for bound, end in zip(bounds, (low, high), strict=True):
        if bound is None:
            continue
        x = np.full(stored.scale.shape, np.float32(bound), np.float32)
        if (quantize(x, stored.scale, stored.zero_point, low, high) != end).any():
            return False
    return True


def _merge(graph: ir.Graph, node: ir.Node, between: _Between) -> None:
    stored = between.stored
    whole = np.float32(stored.scale.max())
    ratios = (stored.scale / whole).astype(np.float32)
    _scale_weight(graph, between.writer, np.float32(1.0) / ratios)
    _scale_bias(graph, between.writer, np.float32(1.0) / ratios)
    for reader in dict.fromkeys(between.readers):
        filters = reader.inputs[1].shape[0] if reader.inputs[1] is not None else 0  # type: ignore[index]
        assert isinstance(filters, int)
        _scale_weight(graph, reader, np.repeat(ratios, filters // ratios.size))
    name = node.inputs[0].name if node.inputs[0] is not None else node.name
    scale = add_initializer(graph, f"{name}/scale", np.asarray(whole))
    zero = np.asarray(stored.zero_point[0], stored.dtype.numpy())
    zero_point = add_initializer(graph, f"{name}/zero_point", zero)
    for conversion in (node, *between.dequantizes):
        conversion.resize_inputs(3)
        conversion.replace_input_with(1, scale)
        conversion.replace_input_with(2, zero_point)
        conversion.attributes.pop("axis", None)
    for clamp in between.clamps:
        source = clamp.inputs[0]
        assert source is not None
        replace(graph, [clamp], [], {clamp.outputs[0]: source})


def _scale_weight(graph: ir.Graph, node: ir.Node, factors: Ratios) -> None:
    """Let ``node`` read the same integers with scales times ``factors``, one per filter."""
    dq = dequantize_of(node.inputs[1])
    stored = None if dq is None else Stored.of(dq)
    assert dq is not None
    assert stored is not None
    scale = np.asarray(stored.scale * factors, np.float32)
    zeros = np.broadcast_to(stored.zero_point, scale.shape)
    _replace_dequantize(graph, node, 1, dq, scale, np.asarray(zeros, stored.dtype.numpy()))


def _scale_bias(graph: ir.Graph, node: ir.Node, factors: Ratios) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return
    array, dq = constant(bias), dequantize_of(bias)
    if array is not None:
        scaled = np.asarray(array * factors, np.float32)
        node.replace_input_with(2, add_initializer(graph, f"{bias.name}/scaled", scaled))
        return
    stored = None if dq is None else Stored.of(dq)
    assert dq is not None
    assert stored is not None
    _replace_dequantize(graph, node, 2, dq, np.asarray(stored.scale * factors, np.float32), None)


def _replace_dequantize(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    dq: ir.Node,
    scale: npt.NDArray[np.float32],
    zeros: npt.NDArray[np.generic] | None,
) -> None:
    tape = Tape(graph, dq.name or "")
    inputs = [dq.inputs[0], scale] if zeros is None else [dq.inputs[0], scale, zeros]
    result = tape.op("DequantizeLinear", *inputs, axis=0)
    result.type, result.shape = dq.outputs[0].type, dq.outputs[0].shape
    graph.insert_before(node, tape.nodes)
    inherit(tape.nodes, [dq])
    node.replace_input_with(index, result)

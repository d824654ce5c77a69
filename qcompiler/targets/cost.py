"""How long a node takes on a target, predicted from its work and the target's cost table.

Keys of a cost table:

- a kernel's id: ``matmul-static``; of convolutions by kind, ``conv-static/pointwise``; of
  weight-only kernels by bits, ``matmul-weight/4``;
- ``float.<Op>``: the operator in float (``float.Conv/depthwise``, ``float.MatMul/batched``);
- ``carry.<Op>``: a carrier on 8-bit data;
- ``quantize``, ``dequantize``: the static conversions, by elements;
- ``quantize-token``: absolute maximum, scale and rounding per row.

A key that a table lacks is looked up under its more general names, see :func:`lookup`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompiler.ir.walk import op_name
from qcompiler.targets.schema import Cost, Target

__all__ = ["Shapes", "Work", "cost_us", "evaluate", "lookup", "per_mac_ns", "shape_of", "work_of"]

Shapes = Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]]

_STEM_CHANNELS = 4  # a convolution with so few input channels reads an image
# onnxruntime 1.31.1 on x86 with AVX512-VNNI, 1 to 64 outputs of 16 and 64 channels, 3x3 and 1x1: up
# to 16 outputs a convolution of floats takes the time of 16, and one of integers no less than that,
# where with many channels it takes a third (3x3) or half (1x1)
_LANES = 16
_FEW_OUTPUTS = {"pointwise": 2.0}
_FEW_OUTPUTS_OF_OTHERS = 3.5
_MANY_CHANNELS = 64  # of depthwise convolutions: from here on the time follows the elements


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What a node has to do.

    Attributes:
        macs: Multiply-accumulates.
        rows: Rows of the activation matrix: batch x sequence, or output pixels of all images.
        elements: Elements of the larger of the main input and the first output.
        kind: Suffix of the cost key: ``pointwise``, ``dense``, ``depthwise``, ``grouped``,
            ``stem`` (Conv), ``batched`` (MatMul of two activations), or "".
        slowdown: How many times as long a kernel on integers takes because channels are few, which
            its costs, of layers with many, do not know.
    """

    macs: int
    rows: int
    elements: int
    kind: str = ""
    slowdown: float = 1.0

    def key(self, base: str) -> str:
        """``base`` with the kind as suffix."""
        return f"{base}/{self.kind}" if self.kind else base


def shape_of(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...] | None:
    """The concrete shape of a value: observed, of its constant, or static; None when unknown."""
    if value is None:
        return None
    if value.name is not None and value.name in shapes:
        return tuple(shapes[value.name][1])
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(size) for size in value.shape.numpy())


def work_of(node: ir.Node, shapes: Shapes) -> Work | None:
    """The work of a node, or None when a shape it depends on is unknown."""
    out = shape_of(node.outputs[0], shapes) if node.outputs else None
    if out is None:
        return None
    special = _WORK.get(op_name(node))
    if special is not None:
        return special(node, out, shapes)
    main = shape_of(node.inputs[0], shapes) if node.inputs else None
    return _elementwise(out, main)


def lookup(costs: Mapping[str, Cost], key: str) -> Cost | None:
    """The cost under the key or its nearest more general name.

    ``float.Conv/stem`` -> ``float.Conv`` -> ``float``; ``carry.MaxPool`` -> ``float.MaxPool`` ->
    ``float``; ``conv-static/stem`` -> ``conv-static``; ``quantize-row`` -> ``quantize``.
    """
    while key:
        if key in costs:
            return costs[key]
        if "/" in key:
            key = key.rpartition("/")[0]
        elif key.startswith("carry."):
            key = "float." + key[len("carry.") :]
        elif key.startswith("float."):
            key = "float"
        elif key.startswith(("quantize-", "dequantize-")):
            key = key.partition("-")[0]
        else:
            key = ""
    return None


def cost_us(target: Target, key: str, work: Work) -> float | None:
    """Predicted microseconds; None when the target's table knows nothing of the key."""
    cost = lookup(target.costs, work.key(key) if "/" not in key else key)
    return None if cost is None else evaluate(cost, work)


def evaluate(cost: Cost, work: Work) -> float:
    """``fixed + per_mac(rows) * macs + per_element * elements``, in microseconds."""
    by_mac = per_mac_ns(cost.per_mac_ns, work.rows) * work.macs
    return cost.fixed_us + (by_mac + cost.per_element_ns * work.elements) / 1000.0


def per_mac_ns(points: Sequence[tuple[float, float]], rows: float) -> float:
    """Nanoseconds per multiply-accumulate at ``rows``.

    Between two points a straight line of the logarithms, outside constant. So the time of a layer,
    which is ``rows`` times this, rises with the rows wherever it does from point to point; a line
    over log(rows) alone would sag.
    """
    if not points:
        return 0.0
    if rows <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if rows <= right:
            share = math.log(rows / left) / math.log(right / left)
            if low <= 0.0 or high <= 0.0:
                return low + (high - low) * share
            return float(low * (high / low) ** share)
    return points[-1][1]


def _elementwise(out: tuple[int, ...], main: tuple[int, ...] | None) -> Work:
    elements = max(math.prod(out), math.prod(main) if main is not None else 0)
    return Work(0, math.prod(out[:-1]), elements)


def _matmul(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    a, b = shape_of(node.inputs[0], shapes), shape_of(node.inputs[1], shapes)
    if not a or not b:
        return None
    macs = math.prod(out) * a[-1]
    elements = max(math.prod(a), math.prod(out))
    if len(b) > 2:  # two activations: many small products, each with its own rows
        return Work(macs, a[-2] if len(a) > 1 else 1, elements, "batched")
    return Work(macs, math.prod(a[:-1]), elements)


def _gemm(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    a = shape_of(node.inputs[0], shapes)
    if a is None or len(a) != 2 or len(out) != 2:
        return None
    inner = a[0] if node.attributes.get_int("transA", 0) else a[1]
    return Work(math.prod(out) * inner, out[0], max(math.prod(a), math.prod(out)))


def _conv(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    x, w = shape_of(node.inputs[0], shapes), shape_of(node.inputs[1], shapes)
    if x is None or w is None or len(w) < 3:
        return None
    macs = math.prod(out) * math.prod(w[1:])
    rows = out[0] * math.prod(out[2:])
    group = node.attributes.get_int("group", 1)
    kind = _conv_kind(x[1], group, w)
    elements = max(math.prod(x), math.prod(out))
    if kind == "depthwise":
        return Work(macs, rows, elements, kind, _few_lanes(w[0]))
    if group == 1 and 0 < w[0] < _LANES:
        slowdown = _FEW_OUTPUTS.get(kind, _FEW_OUTPUTS_OF_OTHERS)
        return Work(macs * _LANES // w[0], rows, elements, kind, slowdown)
    return Work(macs, rows, elements, kind)


def _few_lanes(channels: int) -> float:
    """Of depthwise kernels on integers, which take 48 channels' time for each pixel besides."""
    if channels >= _MANY_CHANNELS or not channels:
        return 1.0
    uneven = 1.0 if channels % _LANES == 0 else 2.0
    return uneven * (1 + 48 / channels) / (1 + 48 / _MANY_CHANNELS)


def _conv_kind(channels: int, group: int, w: tuple[int, ...]) -> str:
    if group > 1:
        return "depthwise" if w[1] == 1 else "grouped"
    if channels <= _STEM_CHANNELS:
        return "stem"
    return "pointwise" if math.prod(w[2:]) == 1 else "dense"


def _conv_transpose(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    x, w = shape_of(node.inputs[0], shapes), shape_of(node.inputs[1], shapes)
    if x is None or w is None:
        return None
    elements = max(math.prod(x), math.prod(out))
    return Work(math.prod(x) * math.prod(w[1:]), x[0] * math.prod(x[2:]), elements)


def _attention(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    q, k = shape_of(node.inputs[0], shapes), shape_of(node.inputs[1], shapes)
    if q is None or k is None or len(q) < 3:
        return None
    keys = k[-2]
    heads = q[1] if len(q) == 4 else node.attributes.get_int("q_num_heads", 1)
    scores = q[0] * heads * q[-2] * keys
    # two products of the size of q with every key, and a softmax over the scores
    return Work(2 * math.prod(q) * keys, q[-2], max(scores, math.prod(out)))


def _gather(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    return Work(0, math.prod(out[:-1]), math.prod(out))  # the table is not read as a whole


def _views(node: ir.Node, out: tuple[int, ...], shapes: Shapes) -> Work | None:
    return Work(0, math.prod(out[:-1]), 0)  # no element is touched


_WORK: Mapping[str, Callable[[ir.Node, tuple[int, ...], Shapes], Work | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Attention": _attention,
    "Gather": _gather,
    "Slice": _gather,
    "Reshape": _views,
    "Flatten": _views,
    "Squeeze": _views,
    "Unsqueeze": _views,
    "Identity": _views,
    "Shape": _views,
    "Size": _views,
}

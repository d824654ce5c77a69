"""Samples of one layer for learned rounding: its function of input and weight, and small crops.

A step of AdaRound needs the layer's output on a few hundred positions, not on whole pictures. A
convolution is therefore trained on crops: squares of its output with the part of the padded input
that they depend on. A matrix product is trained on rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from qcompiler.lift import block_outputs, lift
from qcompiler.lift.conv_pool import resolve_pads
from qcompiler.numerics.affine import Array

__all__ = ["crop_conv", "layer_function", "sample_layer", "take_rows"]

_ROWS = 4096  # of a matrix product, in all
TILE = 4  # output rows and columns of a crop: 32 crops are 512 positions


def layer_function(
    nodes: Sequence[ir.Node],
    x: ir.Value,
    weight: ir.Value,
    *,
    shift: npt.NDArray[np.float64] | None = None,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The layer as a function of its input and its weight.

    Args:
        nodes: The computing node, first, and what belongs to the layer behind it (bias, Relu,
            Clip). The result of the last is the output.
        x: The activation operand.
        weight: The constant to be rounded.
        shift: Added to the bias of a convolution that has one, ``[out]``.

    Returns:
        A function for :func:`~qcompiler.algorithms.adaround.adaround`. That of a convolution takes
        crops from :func:`crop_conv`: it does not pad.
    """
    lifted = lift(nodes, inputs=[x, weight], outputs=block_outputs(nodes)[-1:])
    call = lifted.calls[nodes[0]]
    if nodes[0].op_type == "Conv":
        kept = {name: value for name, value in call.kwargs.items() if name not in _PADDING}
        call.kwargs = kept
        lifted.module.recompile()
        bias = nodes[0].inputs[2] if len(nodes[0].inputs) > 2 else None
        if shift is not None and bias is not None:
            moved = lifted.constant(bias) + torch.from_numpy(shift.astype(np.float32))
            setattr(lifted.module, str(lifted.values[bias].target), moved)
    return lambda given, rounded: lifted(given, rounded)[0]


_PADDING = ("pads", "auto_pad")


def crop_conv(
    node: ir.Node,
    x: Array,
    y: Array,
    *,
    kernel: Sequence[int],
    per_image: int,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Random crops of a convolution's output, and what they depend on.

    Args:
        node: The convolution.
        x: ``[n, in, ...]``, its input.
        y: ``[n, out, ...]``, the output of the layer.
        kernel: Sizes of the kernel.
        per_image: Crops of each image; 1 where the output is no larger than a tile.
        rng: Chooses the places.

    Returns:
        Padded crops of ``x`` and crops of ``y``, ``[n * per_image, ...]``.
    """
    rank = len(kernel)
    stride = list(node.attributes.get_ints("strides", [1] * rank))
    dilation = list(node.attributes.get_ints("dilations", [1] * rank))
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    pads = node.attributes.get_ints("pads", [0] * (2 * rank))
    begins, ends = resolve_pads(x.shape[2:], list(kernel), auto_pad, dilation, pads, stride)
    x = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    sizes = [min(TILE, size) for size in y.shape[2:]]
    reach = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip(sizes, stride, kernel, dilation, strict=True)
    ]
    whole = sizes == list(y.shape[2:])
    xs, ys = [], []
    for image, wanted in zip(x, y, strict=True):
        for _ in range(1 if whole else per_image):
            at = [
                int(rng.integers(0, full - size + 1))
                for full, size in zip(y.shape[2:], sizes, strict=True)
            ]
            behind = [slice(a, a + size) for a, size in zip(at, sizes, strict=True)]
            before = [slice(a * s, a * s + r) for a, s, r in zip(at, stride, reach, strict=True)]
            ys.append(wanted[(slice(None), *behind)])
            xs.append(image[(slice(None), *before)])
    return np.stack(xs), np.stack(ys)


def take_rows(
    x: Array, y: Array, *, count: int, rng: np.random.Generator, per_sample: int = 32
) -> tuple[Array, Array]:
    """Random rows of a matrix product's operands, in order, ``per_sample`` of them a sample.

    Args:
        x: ``[..., in]``.
        y: ``[..., out]``, with the same rows.
        count: Rows to take, at most.
        rng: Chooses them.
        per_sample: Rows of a sample.

    Returns:
        ``[samples, per_sample, in]`` and ``[samples, per_sample, out]``; channels are on axis 2.
    """
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    each = min(per_sample, len(flat_x))
    samples = max(1, min(count, len(flat_x)) // each)
    rows = np.sort(rng.permutation(len(flat_x))[: samples * each]).reshape(samples, each)
    return flat_x[rows], flat_y[rows]


def sample_layer(
    node: ir.Node,
    shape: Sequence[int],
    inputs: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    per_image: int,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Crops or rows of a layer on several feeds.

    Args:
        node: The Conv or MatMul.
        shape: Of its weight.
        inputs: What it reads, for each feed.
        targets: What it should give, for each feed.
        per_image: Crops of each image.
        rng: Chooses them.

    Returns:
        ``[samples, ...]`` of inputs and targets; feeds with crops of other sizes than the first
        one's are left out.
    """
    xs: list[Array] = []
    ys: list[Array] = []
    for x, y in zip(inputs, targets, strict=True):
        if node.op_type == "Conv":
            found = crop_conv(
                node, x.numpy(), y.numpy(), kernel=shape[2:], per_image=per_image, rng=rng
            )
        else:
            found = take_rows(x.numpy(), y.numpy(), count=_ROWS // len(inputs), rng=rng)
        if not xs or (xs[0].shape[1:], ys[0].shape[1:]) == (found[0].shape[1:], found[1].shape[1:]):
            xs.append(found[0])
            ys.append(found[1])
    return np.concatenate(xs), np.concatenate(ys)

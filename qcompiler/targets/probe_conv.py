"""Convolutions in the forms that a probe compares."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.targets.cost import Work
from qcompiler.targets.probe_tensors import (
    NOTHING,
    STEP,
    Array,
    Build,
    Probed,
    dequantized,
    output_parameters,
    qdq_output,
    qdq_weight,
    random_activation,
    random_weight,
    rounded,
)
from qcompiler.targets.schema import Kernel, Target

__all__ = ["ConvShape", "conv"]


@dataclasses.dataclass(frozen=True, slots=True)
class ConvShape:
    """Geometry of a convolution that keeps its picture's size unless strided."""

    batch: int
    channels: int
    filters: int
    kernel: int
    size: int
    stride: int = 1
    group: int = 1


def conv(
    row: Kernel, target: Target, shape: ConvShape, rng: np.random.Generator, numbers: bool
) -> Probed:
    """A convolution of a row; without ``numbers`` what must come out is left open."""
    spec, weight = row.inputs[0], row.inputs[1]
    assert spec is not None
    assert weight is not None
    per_group = shape.channels // shape.group
    x = random_activation(spec, (shape.batch, shape.channels, shape.size, shape.size), rng)
    w = random_weight(
        target.weight_spec(weight), (shape.filters, per_group, shape.kernel, shape.kernel), 0, rng
    )
    out = (shape.size - 1) // shape.stride + 1
    pixels = shape.batch * out * out
    work = Work(
        pixels * w.q.size,
        pixels,
        max(x.q.size, pixels * shape.filters),
        _kind(shape),
    )
    attributes: dict[str, Any] = {
        "kernel_shape": [shape.kernel] * 2,
        "strides": [shape.stride] * 2,
        "pads": [shape.kernel // 2] * 4,
        "group": shape.group,
    }
    bias_scale = (x.scale * w.scale.reshape(-1)).astype(np.float32)
    bias = rng.integers(-1000, 1000, shape.filters).astype(np.int32)
    real_bias = (bias * bias_scale).astype(np.float32)
    product = _convolve(x.real, w.real, shape) if numbers else NOTHING
    expected = product + real_bias.reshape(1, -1, 1, 1)
    output = row.output or spec
    scale, zero_point = output_parameters(output, expected)
    builds: dict[str, Build] = {
        "float": lambda t, v: t.op("Conv", v["x"], w.real, real_bias, **attributes),
        "ort": lambda t, v: t.op(
            "QLinearConv",
            *(v["x"], x.scale, x.zero_point, w.q, w.scale.reshape(-1), w.zero_point),
            *(scale, zero_point, bias),
            **attributes,
        ),
        "qdq": lambda t, v: qdq_output(
            t,
            t.op(
                "Conv",
                dequantized(t, v["x"], x),
                qdq_weight(t, w, 0),
                t.op("DequantizeLinear", bias, bias_scale, np.zeros_like(bias), axis=0),
                **attributes,
            ),
            scale,
            zero_point,
        ),
    }
    feeds = {"float": {"x": x.real}, "ort": {"x": x.q}, "qdq": {"x": x.real}}
    stored = rounded(expected, scale, zero_point, output)
    return Probed(work, feeds, builds, stored.real, STEP, stored.parameters)


def _kind(shape: ConvShape) -> str:
    if shape.group > 1:
        return "depthwise"
    if shape.channels <= 4:
        return "stem"
    return "pointwise" if shape.kernel == 1 else "dense"


def _convolve(x: Array, w: Array, shape: ConvShape) -> npt.NDArray[np.float32]:
    """The convolution by its definition: windows times filters, summed."""
    pad = shape.kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: shape.stride, :: shape.stride]
    split = windows.reshape(x.shape[0], shape.group, -1, *windows.shape[2:])
    filters = w.reshape(shape.group, -1, *w.shape[1:])
    product = np.einsum("bgchwij,gfcij->bgfhw", split, filters, optimize=True)
    out = product.reshape(x.shape[0], -1, *windows.shape[2:4])
    return np.asarray(out, dtype=np.float32)

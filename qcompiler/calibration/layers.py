"""The layers that read a value: what an error of the value does to their outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.calibration.moments import LARGEST, PatchMoment
from qcompiler.ir.edit import constant
from qcompiler.runtime.products import small_product

__all__ = ["Layer", "channel_axis", "judging", "layers_reading", "patch_moment", "sketch"]

_SKETCH = 32  # columns of the random projection
_LINEAR = ("MatMul", "Gemm")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A MatMul, Gemm or Conv with a constant weight, as the reader of its input 0.

    Attributes:
        node: Its name.
        op: Its operator.
        weight: The constant as stored: ``[K, N]`` (``[N, K]`` for Gemm with transB), or
            ``[O, C / groups, ...]`` for Conv.
        transposed: Gemm's transB.
        groups: Conv's groups.
    """

    node: str
    op: str
    weight: npt.NDArray[np.float32]
    transposed: bool = False
    groups: int = 1
    dilations: tuple[int, ...] = ()

    @property
    def channel_axis(self) -> int:
        """Axis of the input that the weight mixes."""
        return 1 if self.op == "Conv" else -1

    @functools.cached_property
    def is_mixing(self) -> bool:
        """Whether each output is a weighted sum of one row of the input (a 1x1 Conv is)."""
        return self.op != "Conv" or (self.groups == 1 and self.weight[0, 0].size == 1)

    @functools.cached_property
    def energy(self) -> npt.NDArray[np.float64]:
        """Sum of squared weights that read each input channel, float64 ``[channels]``.

        The squared error of the outputs that errors of the input make, if these are independent:
        exact for rounding of independent pixels, so it is what a Conv with a kernel is judged by.
        """
        w = self.weight
        if self.op != "Conv":
            return np.asarray(np.square(self.matrix(), dtype=np.float64).sum(axis=1))
        by_input = np.square(w, dtype=np.float64).reshape(self.groups, -1, *w.shape[1:])
        # [groups, O / groups, C / groups, taps...] -> [groups, C / groups]
        return np.asarray(by_input.sum(axis=(1, *range(3, by_input.ndim))).reshape(-1))

    def matrix(self) -> npt.NDArray[np.float32]:
        """The weight as ``[channels, outputs]``, of a layer that :attr:`is_mixing`."""
        if self.op == "Conv":
            return np.asarray(self.weight.reshape(len(self.weight), -1).T)
        return np.asarray(self.weight.T if self.transposed else self.weight)


def sketch(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A matrix ``S`` ``[channels, <= 32]`` with ``|d S|^2`` close to ``|d matrix|^2`` for rows d.

    The matrix times random signs over sqrt(32) (Johnson and Lindenstrauss): an output error is
    judged at a fraction of the cost of computing the outputs. Over a hundred rows the estimate of
    the summed energy is within some 3 %, and its error is the same for all candidates.
    """
    outputs = matrix.shape[1]
    if outputs <= _SKETCH:
        return matrix
    signs = np.random.default_rng(outputs).integers(0, 2, (outputs, _SKETCH), np.int8)
    projection = (2 * signs - 1).astype(np.float32) / np.float32(np.sqrt(_SKETCH))
    return small_product(np.ascontiguousarray(matrix), projection)


def patch_moment(layers: Iterable[Layer], shape: tuple[int, ...], seed: int) -> PatchMoment | None:
    """An empty sum of patches for the first Conv with a 2-D kernel among ``layers``.

    None where there is none, or where the moment would be larger than :data:`LARGEST`.
    """
    for layer in layers:
        if layer.is_mixing or layer.weight.ndim != 4 or len(shape) != 4:
            continue
        _, depth, height, width = layer.weight.shape
        size = depth * height * width
        if layer.groups * size * size > LARGEST:
            return None
        dilations = (*layer.dilations, 1, 1)
        return PatchMoment(
            shape[1], layer.groups, (height, width), (dilations[0], dilations[1]), seed
        )
    return None


def layers_reading(value: ir.Value) -> tuple[Layer, ...]:
    """The layers with constant float weights that read ``value`` as their data input."""
    found = (_layer(use.node) for use in value.uses() if use.idx == 0)
    return tuple(layer for layer in found if layer is not None)


def channel_axis(layers: Iterable[Layer], rank: int) -> int | None:
    """The axis of channels of a value of ``rank`` that these layers read; None without layers."""
    axes = {layer.channel_axis for layer in layers}
    if not axes or rank < 2:
        return None
    return 1 if axes == {1} else -1


def judging(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers whose channels lie along :func:`channel_axis`: the columns of sampled rows.

    A value that a Conv and a MatMul read is sampled along the axis of the MatMul, of which a Conv
    knows nothing.
    """
    layers = tuple(layers)
    linear = tuple(layer for layer in layers if layer.channel_axis == -1)
    return linear or layers


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def _layer(node: ir.Node) -> Layer | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in (*_LINEAR, "Conv"):
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype not in (np.float32, np.float16):
        return None
    if node.op_type != "Conv" and weight.ndim != 2:
        return None
    transposed, groups = node.attributes.get("transB"), node.attributes.get("group")
    return Layer(
        node.name or "",
        node.op_type,
        np.asarray(weight, np.float32),
        transposed=transposed is not None and bool(transposed.as_int()),
        groups=1 if groups is None else groups.as_int(),
        dilations=_ints(node, "dilations"),
    )

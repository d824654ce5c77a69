"""Products of float32 matrices by the runtime's own kernels."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["product", "small_product"]

_Floats = npt.NDArray[np.float32]

_UNTHREADED = 1 << 18  # multiply-adds; from here on OpenBLAS 0.3 hands parts to other threads


def product(left: _Floats, right: _Floats) -> _Floats:
    """``left @ right`` of float32 matrices; one that is a transposed view is read as it lies.

    ONNX Runtime asks the processor which instructions it has. The OpenBLAS that numpy brings
    (0.3.31) knows processors by name and gives one that is newer what its forebears had: on Zen 5
    half the speed, 110 beside 210 GFLOP/s a core. Its threads spin while they wait for one another,
    which on a busy machine costs more than the product. And here no order of summing depends on
    the number of threads. Small products are left to numpy.
    """
    if left.size * right.shape[1] < _UNTHREADED:
        return left @ right
    return _product(left, right, None)


def small_product(left: _Floats, right: _Floats) -> _Floats:
    """As :func:`product`, on the calling thread alone.

    For many products of one step each (:func:`~qcompiler.numerics.parallel.on_all_cores`): waiting
    for a thread that is not running costs ten times the arithmetic.
    """
    return _product(left, right, 1)


def _product(left: _Floats, right: _Floats, threads: int | None) -> _Floats:
    turned = tuple(x.strides[0] < x.strides[1] for x in (left, right))
    feed = {
        name: x.T if flipped else x
        for name, x, flipped in zip(("left", "right"), (left, right), turned, strict=True)
    }
    return run(_session(*turned, threads), feed)["product"]


@functools.cache
def _session(left_turned: bool, right_turned: bool, threads: int | None) -> ort.InferenceSession:
    left, right = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, None]))
        for name in ("left", "right")
    )
    turned = {"transA": int(left_turned), "transB": int(right_turned)}
    node = ir.node("Gemm", [left, right], turned, name="product")
    found = node.outputs[0]
    found.name, found.type = "product", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([left, right], [found], nodes=[node], opset_imports={"": 17}, name="products")
    settings = SessionSettings("all", {"session.intra_op.allow_spinning": "0"})
    model = ir.Model(graph, ir_version=8)
    return open_session(model, settings=settings, threads=threads, arena=False)

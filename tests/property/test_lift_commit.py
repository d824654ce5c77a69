"""``commit(lift(x))`` is the identity on bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from qcompiler.lift import commit, lift

FLOATS = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE]


@given(
    bits=st.binary(min_size=8, max_size=48).map(lambda raw: raw[: len(raw) // 8 * 8]),
    dtype=st.sampled_from(FLOATS),
    readers=st.integers(1, 3),
    force=st.booleans(),
)
@settings(max_examples=60, deadline=None, database=None)
def test_commit_of_lift_keeps_every_byte(
    bits: bytes, dtype: ir.DataType, readers: int, force: bool
) -> None:
    """Any bit pattern, NaN payloads and negative zeros included; also where a write is forced."""
    array = np.frombuffer(bits, dtype.numpy())
    w = ir.Value(name="w", const_value=ir.Tensor(array, dtype=dtype, name="w"))
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([array.size]))
    nodes, last = [], x
    for index in range(readers):
        node = ir.node("Mul", [last, w], name=f"mul{index}")
        nodes.append(node)
        last = node.outputs[0]
        last.name = f"y{index}"
    graph = ir.Graph([x], [last], nodes=nodes, initializers=[w], opset_imports={"": 23}, name="g")
    before = w.const_value.tobytes()
    lifted = lift(graph, trainable=[w])
    assert list(lifted.params) == [w]
    if force:  # so that commit sees another tensor and has to write
        w.const_value = ir.Tensor(np.zeros_like(array), dtype=dtype, name="w")
    commit(lifted)
    assert w.const_value.tobytes() == before
    assert w.const_value.dtype == dtype
    assert w.const_value.name == "w"

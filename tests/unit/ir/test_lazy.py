"""Constants that are read at each access."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.lazy import Stored, View, lazy_tensor, multiplied, view_of
from qcompiler_passes.prepare.absorb import Edit, apply_edits


def test_products_are_computed_at_each_access() -> None:
    array, reads = np.arange(6, dtype=np.float32).reshape(2, 3), []

    def read() -> np.ndarray:
        reads.append(1)
        return array

    view = View(Stored("w", (2, 3), read), transposed=True)
    tensor = multiplied(view, np.array([[1.0], [2.0], [4.0]]), "w")
    assert not reads
    for count in (1, 2):
        np.testing.assert_array_equal(tensor.numpy(), [[0, 3], [2, 8], [8, 20]])
        assert len(reads) == count


def test_factors_leave_a_weight_in_its_file() -> None:
    stored = Stored("w", (2, 3), lambda: np.ones((2, 3), np.float32))
    weight = ir.Value(name="w", const_value=lazy_tensor(View(stored), "w"))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 2]))
    node = ir.node("MatMul", [x, weight], name="layer")
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 17})
    edit = Edit(node, 1, np.arange(2), inverse=True, rows=True)
    assert apply_edits(graph, [edit], np.array([2.0, 0.5]))
    assert view_of(weight.const_value) is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), [[2, 2, 2], [0.5, 0.5, 0.5]])

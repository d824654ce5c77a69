"""Weights of other files, in the model itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.walk import all_graphs

__all__ = ["inlined"]


def inlined(model: ir.Model) -> ir.Model:
    """The model with weights that are mapped from files in memory instead, to be one file.

    Args:
        model: Left as it is, and returned where no weight is in a file.
    """
    if not any(_is_mapped(value) for graph in all_graphs(model) for value in _constants(graph)):
        return model
    copy = model.clone()
    for graph in all_graphs(copy):
        for value in filter(_is_mapped, _constants(graph)):
            mapped = value.const_value
            assert mapped is not None
            value.const_value = ir.Tensor(
                np.asarray(mapped.numpy()), dtype=mapped.dtype, name=mapped.name
            )
    return copy


def _constants(graph: ir.Graph) -> list[ir.Value]:
    return list(graph.initializers.values())


def _is_mapped(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)

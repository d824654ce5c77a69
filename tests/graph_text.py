"""Graphs written as text, with weights that the text only declares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

__all__ = ["with_weights"]


def with_weights(text: str, weights: Mapping[str, np.ndarray]) -> ir.Model:
    """A model from ONNX text; the inputs of these names become initializers."""
    model = ir.from_onnx_text(text)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        value.const_value = ir.tensor(weights[value.name], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model

"""Sines and cosines of an exported rotary embedding, a row for each text of the batch.

torch's exporter (onnxscript 0.7) writes RotaryEmbedding for a rotation whose cosines are
``[1, sequence, width / 2]``. The operator wants ``[batch, sequence, width / 2]``, and ONNX Runtime
refuses anything else when it runs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape
from qcompiler.ir.provenance import inherit

__all__ = ["widen_rotary_caches"]


def widen_rotary_caches(model: ir.Model) -> None:
    """Repeat caches of one text for every text that is rotated by them; in place."""
    graph = model.graph
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type != "RotaryEmbedding" or (len(node.inputs) > 3 and node.inputs[3]):
            continue  # with positions there is one table for all texts
        x = node.inputs[0]
        assert x is not None, "the operator has three inputs"
        if x.shape is not None and x.shape[0] == 1:
            continue
        for index in (1, 2):
            cache = node.inputs[index]
            assert cache is not None, "the operator has three inputs"
            if cache.shape is not None and cache.shape[0] != 1:
                continue
            if cache not in wide:
                wide[cache] = _repeated(graph, node, x, cache)
            node.replace_input_with(index, wide[cache])


def _repeated(graph: ir.Graph, node: ir.Node, x: ir.Value, cache: ir.Value) -> ir.Value:
    tape = Tape(graph, f"{node.name}/caches")
    batch = tape.op("Shape", x, start=0, end=1)
    shape = tape.op("Concat", batch, np.array([1, 1], np.int64), axis=0)
    result: ir.Value = tape.op("Expand", cache, shape)
    graph.insert_before(node, tape.nodes)
    inherit(tape.nodes, [node])
    return result

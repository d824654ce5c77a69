"""A block of two products with Relu between."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer

IN, HIDDEN = 24, 20


def block(rng: np.random.Generator) -> tuple[ir.Graph, list[ir.Value]]:
    """Two products with Relu between."""
    x = ir.Value(name="x", shape=ir.Shape(["n", IN]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="block")
    weights = [
        add_initializer(graph, name, rng.normal(0, 1, shape).astype(np.float32))
        for name, shape in (("w1", (IN, HIDDEN)), ("w2", (HIDDEN, IN)))
    ]
    tape = Tape(graph, "n")
    hidden = tape.op("Relu", tape.op("MatMul", x, weights[0]))
    result = tape.op("MatMul", hidden, weights[1])
    graph.extend(tape.nodes)
    graph.outputs.append(result)
    return graph, weights

"""Change the sign of stored 8-bit integers: integers and zero points move by 128 together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, constant
from qcompiler.ir.provenance import inherit
from qcompiler_passes.quantized.stored import BYTES, Stored, is_dequantize, is_quantize

__all__ = ["Signs"]


class Signs:
    """Shifted constants of one graph, made once."""

    def __init__(self, graph: ir.Graph) -> None:
        """Shift in ``graph``."""
        self.graph = graph
        self._shifted: dict[tuple[ir.Value, ir.DataType, tuple[int, ...]], ir.Value] = {}

    def unify_activations(self, wanted: ir.DataType) -> bool:
        """Let every static 8-bit activation that only DQ nodes read be of type ``wanted``."""
        if wanted not in BYTES:
            return False
        changed = False
        for node in self.graph:
            if not is_quantize(node) or node.outputs[0].is_graph_output():
                continue
            stored = Stored.of(node)
            readers = [(use.node, use.idx) for use in node.outputs[0].uses()]
            if stored is None or stored.dtype is wanted or stored.dtype not in BYTES:
                continue
            if not readers or any(not is_dequantize(n) or i != 0 for n, i in readers):
                continue
            if any(Stored.of(reader) is None for reader, _ in readers):
                continue
            for conversion in dict.fromkeys([node, *(reader for reader, _ in readers)]):
                self._zero_point(conversion, wanted)
            node.outputs[0].type = ir.TensorType(wanted)
            changed = True
        return changed

    def constant(self, node: ir.Node, index: int, dq: ir.Node, wanted: ir.DataType) -> ir.Node:
        """The DQ that ``node`` reads a constant through, of type ``wanted``."""
        stored = Stored.of(dq)
        source = dq.inputs[0]
        q = constant(source)
        assert stored is not None
        assert source is not None
        assert q is not None
        if stored.dtype is wanted or stored.dtype not in BYTES:
            return dq
        changed = stored.shifted(wanted)
        by = -128 if wanted is ir.DataType.INT8 else 128
        moved = self._of(source, wanted, np.asarray(q.astype(np.int16) + by, wanted.numpy()))
        zeros = np.asarray(changed.zero_point, wanted.numpy())
        tape = Tape(self.graph, dq.name or "")
        result = tape.op("DequantizeLinear", moved, dq.inputs[1], zeros, axis=stored.axis)
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), dq.outputs[0].shape
        self.graph.insert_before(node, tape.nodes)
        inherit(tape.nodes, [dq])
        node.replace_input_with(index, result)
        return tape.nodes[-1]

    def _zero_point(self, conversion: ir.Node, wanted: ir.DataType) -> None:
        stored = Stored.of(conversion)
        assert stored is not None
        zeros = np.asarray(stored.shifted(wanted).zero_point, wanted.numpy())
        given = conversion.inputs[2] if len(conversion.inputs) > 2 else None
        scale = conversion.inputs[1]
        assert scale is not None
        value = self._of(given if given is not None else scale, wanted, zeros)
        if len(conversion.inputs) < 3:
            conversion.resize_inputs(3)
        conversion.replace_input_with(2, value)
        if "output_dtype" in conversion.attributes:
            del conversion.attributes["output_dtype"]

    def _of(self, source: ir.Value, wanted: ir.DataType, array: npt.NDArray[Any]) -> ir.Value:
        key = (source, wanted, array.shape)
        if key not in self._shifted:
            name = f"{source.name}/{'u8' if wanted is ir.DataType.UINT8 else 's8'}"
            self._shifted[key] = add_initializer(self.graph, name, array)
        return self._shifted[key]

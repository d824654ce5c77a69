"""Write one integer operator in the QDQ dialect: operands dequantized, result quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, constant, replace

__all__ = ["Spelling", "take_place"]

_Parameter = ir.Value | npt.NDArray[Any] | None


class Spelling:
    """The nodes that stand for one integer operator.

    Attributes:
        node: The integer operator.
        old: What goes with it, in graph order; ends with the node whose output is replaced.
        main: The float operator; it takes the name.
        result: The value that takes the place of the output.
    """

    def __init__(self, node: ir.Node, tape: Tape) -> None:
        """Spell ``node`` on ``tape``."""
        self.node = node
        self.old: list[ir.Node] = [node]
        self.tape = tape
        self.main: ir.Node | None = None
        self.result: ir.Value | None = None

    def dequantize(
        self,
        q: _Parameter,
        scale: _Parameter,
        zero_point: _Parameter,
        axis: int | None = None,
    ) -> ir.Value:
        """The float value behind a DQ; ``axis`` counts only where there are several scales."""
        scales = scale if isinstance(scale, np.ndarray) else constant(scale)
        several = scales is not None and scales.size > 1
        if scales is not None:  # some tools write [1] or [1, N]; the dialect has scalars and [N]
            scale = _flat(scale, scales, several)
            zeros = zero_point if isinstance(zero_point, np.ndarray) else constant(zero_point)
            if zeros is not None:
                if several and zeros.size == 1:
                    zeros = np.broadcast_to(zeros.reshape(()), (scales.size,)).copy()
                zero_point = _flat(zero_point, zeros, several)
        dq = self.tape.op(
            "DequantizeLinear",
            *((q, scale) if zero_point is None else (q, scale, zero_point)),
            axis=axis if several else None,
        )
        dq.type = ir.TensorType(ir.DataType.FLOAT)
        if isinstance(q, ir.Value):
            dq.shape = q.shape
        elif q is not None:
            dq.shape = ir.Shape(q.shape)
        return dq  # type: ignore[no-any-return]

    def compute(self, op_type: str, *operands: ir.Value | None, **attributes: Any) -> ir.Value:
        """The float operator."""
        y = self.tape.op(op_type, *operands, **attributes)
        self.main = self.tape.nodes[-1]
        y.type = ir.TensorType(ir.DataType.FLOAT)
        y.shape = self.node.outputs[0].shape
        return y  # type: ignore[no-any-return]

    def quantize(self, y: ir.Value, scale: _Parameter, zero_point: _Parameter) -> Spelling:
        """Close with a Q of the result; the type is that of the operator's output."""
        scales = scale if isinstance(scale, np.ndarray) else constant(scale)
        zeros = zero_point if isinstance(zero_point, np.ndarray) else constant(zero_point)
        if scales is not None:
            scale = _flat(scale, scales, several=False)
        if zeros is not None:
            zero_point = _flat(zero_point, zeros, several=False)
        elif zero_point is None:
            dtype = self.node.outputs[0].dtype or ir.DataType.UINT8
            zero_point = np.zeros((), dtype.numpy())
        q = self.tape.op("QuantizeLinear", y, scale, zero_point)
        q.type, q.shape = self.node.outputs[0].type, self.node.outputs[0].shape
        return self.close(q)

    def close(self, result: ir.Value) -> Spelling:
        """Say which value takes the operator's place."""
        self.result = result
        return self


def take_place(graph: ir.Graph, spelling: Spelling) -> None:
    """Put the nodes of a spelling where the operator stood; the float operator keeps its name."""
    main, result = spelling.main, spelling.result
    assert main is not None
    assert result is not None
    node = spelling.node
    name = node.name
    replace(graph, spelling.old, spelling.tape.nodes, {spelling.old[-1].outputs[0]: result})
    if node.graph is None:
        main.name = name


def _flat(given: _Parameter, array: npt.NDArray[Any], several: bool) -> _Parameter:
    """The parameter as a scalar or ``[N]``; the initializer itself where it has that shape."""
    shape = (array.size,) if several else ()
    return given if array.shape == shape else array.reshape(shape)

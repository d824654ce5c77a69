"""Write QuantizeLinear and DequantizeLinear around values, once per value.

The dialect, and why it is what it is: ``docs/adr/0003-one-qdq-dialect-two-forms.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import Tape, add_initializer, constant, fresh_name
from qcompiler.ir.provenance import inherit
from qcompiler.numerics.affine import quantize_as
from qcompiler.numerics.packing import integer_tensor
from qcompiler.numerics.qtensor import QTensor
from qcompiler.pipeline.contract import State
from qcompiler.schemes import Granularity, QSpec
from qcompiler_passes.apply.weight_writer import stored_dtype
from qcompiler_passes.planned import SPEC, stored_parameters, value_spec

__all__ = ["QdqWriter", "move_uses"]

_TYPED_SINCE = 21  # opset of QuantizeLinear's output_dtype
_WIDE_SINCE = 21  # opset of 16-bit integers in QuantizeLinear and DequantizeLinear
_TINY = np.float32(np.finfo(np.float32).tiny)  # scale of a row of zeros: anything positive will do

TakesLow = Callable[[ir.Node, int], bool]


def _inner_shape(value: ir.Value) -> ir.Shape | None:
    """The shape of a value inside of the graph, which does not trust names of a graph output.

    Exporters name the sizes of outputs as their user said, and one name may stand for several
    sizes. Nobody reads that of an output; inside, ONNX Runtime 1.31.1 lets tensors of equally named
    shapes share a buffer, and fails when they differ.
    """
    if value.shape is None or not value.is_graph_output():
        return value.shape
    return ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])


def move_uses(graph: ir.Graph, old: ir.Value, new: ir.Value, keep: Iterable[ir.Node] = ()) -> None:
    """Let every reader of ``old`` read ``new``, those in ``keep`` excepted.

    A graph output keeps its name: it moves to ``new`` and ``old`` gets a fresh one.
    """
    kept = set(keep)
    for use in list(old.uses()):
        if use.node not in kept:
            use.node.replace_input_with(use.idx, new)
    if old.is_graph_output():
        name = old.name
        new.shape, old.shape = old.shape, _inner_shape(old)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        old.name = fresh_name(graph, f"{name}/float")
        new.name = name


# Half of int32 is left to the sum that the constant is added to: beyond it (an infinite bias) the
# constant saturates here, and nothing wraps around.
_LARGEST = float(2**30)


class QdqWriter:
    """Inserts the nodes that quantize and dequantize values of one graph."""

    def __init__(self, graph: ir.Graph, state: State) -> None:
        """Write into ``graph`` by the plan, ranges and weights of ``state``."""
        self.graph = graph
        self.state = state
        self.opset = graph.opset_imports.get("", 0)
        self._float32: dict[ir.Value, ir.Value] = {}
        self._static: dict[ir.Value, ir.Value] = {}
        self._made: set[ir.Value] = set()
        self._runtime: dict[tuple[ir.Value, QSpec], ir.Value] = {}
        self._parameters: dict[str, tuple[ir.Value, ir.Value | None]] = {}
        self._scalars: dict[tuple[str, object], ir.Value] = {}
        self._integers: dict[int, tuple[ir.Value, ir.Value, ir.Value | None]] = {}

    def dtype_of(self, value: ir.Value) -> ir.DataType:
        """Element type of a value; float32 when nobody knows."""
        if value.dtype is not None:
            return value.dtype
        seen = (self.state.shapes or {}).get(value.name or "")
        return ir.DataType.from_numpy(seen[0]) if seen else ir.DataType.FLOAT

    def static(self, value: ir.Value) -> ir.Value:
        """The float32 value behind one Q and DQ of ``value`` with its planned parameters."""
        if value not in self._static:
            name = value.name or ""
            array = constant(value)
            tape = Tape(self.graph, name)
            scale, zero_point = self.parameters(name)
            dtype = self._stored_type(name)
            domain = self._domain_of(dtype)
            parameters = [scale] if zero_point is None else [scale, zero_point]
            if array is None:
                q = tape.op(
                    "QuantizeLinear",
                    self.float32(value),
                    *parameters,
                    domain=domain,
                    output_dtype=dtype if zero_point is None else None,
                )
            else:
                q = self._quantized_constant(value, array)
            dq = tape.op("DequantizeLinear", q, *parameters, domain=domain)
            _describe(value, q, dtype)
            _describe(value, dq, ir.DataType.FLOAT)
            self._insert(tape.nodes, value)
            self._static[value] = dq
            self._made.add(dq)
        return self._static[value]

    def store(self, value: ir.Value, dtype: ir.DataType, takes_low: TakesLow) -> None:
        """Quantize what a low-precision producer leaves: nobody sees the float ``value`` again.

        Args:
            value: The float result of the producer.
            dtype: Its type in the float model; its readers get a Cast to it unless it is float32.
            takes_low: Whether a reader takes the value in low precision.
        """
        value.type = ir.TensorType(
            ir.DataType.FLOAT
        )  # types are shared with clones: never edit one
        low = [(use.node, use.idx) for use in value.uses() if takes_low(use.node, use.idx)]
        readers = {use.node for use in value.uses()}
        dq = self.static(value)
        quantize_node = next(use.node for use in value.uses() if use.node not in readers)
        for node, index in low:
            node.replace_input_with(index, dq)
        if dtype is not ir.DataType.FLOAT and (len(value.uses()) > 1 or value.is_graph_output()):
            tape = Tape(self.graph, value.name or "")
            cast = tape.op("Cast", dq, to=dtype)
            _describe(value, cast, dtype)
            producer = dq.producer()
            assert producer is not None
            self.graph.insert_after(producer, tape.nodes)
            inherit(tape.nodes, [producer])
            move_uses(self.graph, value, cast, keep=[quantize_node])
        else:
            move_uses(self.graph, value, dq, keep=[quantize_node])

    def is_dequantized(self, value: ir.Value | None) -> bool:
        """Whether the value already is a DQ's output that this writer made."""
        return value is not None and value in self._made

    def dynamic(self, value: ir.Value, spec: QSpec) -> ir.Value:
        """``value`` through scales that are computed at run time, per tensor or per row."""
        if (value, spec) not in self._runtime:
            tape = Tape(self.graph, value.name or "")
            x = self.float32(value)
            if spec.granularity is Granularity.TOKEN:
                dq = self._by_row(tape, x, spec)
            elif spec.granularity is Granularity.TENSOR and spec.dtype is ir.DataType.UINT8:
                q, scale, zero_point = tape.op("DynamicQuantizeLinear", x, outputs=3)
                dq = tape.op("DequantizeLinear", q, scale, zero_point)
            else:
                raise QcError(
                    Code.NO_LOWERING,
                    value.name or "",
                    f"no run-time quantization {spec}",
                    "use u8tzd, u8kd or s8kd",
                )
            _describe(value, dq, ir.DataType.FLOAT)
            self._insert(tape.nodes, value)
            self._runtime[value, spec] = dq
        return self._runtime[value, spec]

    def weight(self, node: ir.Node, index: int, weight: QTensor, dtype: ir.DataType) -> ir.Value:
        """The DQ of a rounded constant, placed before ``node``; tied constants stay tied."""
        q, scale, zero_point = self.integers(node, index, weight, dtype)
        spec = weight.spec
        tape = Tape(self.graph, q.name or "")
        dq = tape.op(
            "DequantizeLinear",
            q,
            scale,
            *(() if zero_point is None else (zero_point,)),
            axis=None if spec.granularity is Granularity.TENSOR else spec.axis,
            block_size=spec.group_size,
        )
        dq.type, dq.shape = ir.TensorType(dtype), ir.Shape(weight.q.shape)
        tape.nodes[-1].metadata_props[SPEC] = str(spec)
        self.graph.insert_before(node, tape.nodes)
        inherit(tape.nodes, [node])
        return dq  # type: ignore[no-any-return]

    def integers(
        self, node: ir.Node, index: int, weight: QTensor, dtype: ir.DataType
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Initializers of a rounded constant: its elements, scale in ``dtype``, zero point."""
        if id(weight) not in self._integers:
            spec = weight.spec
            source = node.inputs[index]
            name = (source.name if source is not None else None) or f"{node.name}/weight"
            stored = stored_dtype(spec, self.opset)
            shape: tuple[int, ...] = weight.scale.shape
            if spec.granularity is Granularity.TENSOR:
                shape = ()
            elif spec.granularity is Granularity.CHANNEL:
                shape = (weight.scale.size,)
            zeros = weight.zero_point
            zeros = np.zeros(weight.scale.shape, np.int32) if zeros is None else zeros
            scale = weight.scale.reshape(shape).astype(dtype.numpy())
            self._integers[id(weight)] = (
                add_initializer(self.graph, f"{name}/q", integer_tensor(weight.q, stored)),
                add_initializer(self.graph, f"{name}/scale", scale),
                self._zero_point(name, zeros.reshape(shape), stored),
            )
        return self._integers[id(weight)]

    def bias(self, node: ir.Node, index: int, weight: QTensor) -> ir.Value | None:
        """The int32 DQ of a constant bias in steps of ``x_scale * w_scale``; None if not constant.

        ``node.inputs[0]`` must be a static DQ of this writer already.
        """
        array = constant(node.inputs[index])
        dq = node.inputs[0]
        if array is None or dq is None or dq not in self._made:
            return None
        producer = dq.producer()
        assert producer is not None
        x_scale = constant(producer.inputs[1])
        assert x_scale is not None
        return self.int32_constant(
            node, index, array, np.float32(x_scale) * weight.scale.reshape(-1)
        )

    def int32_constant(
        self,
        node: ir.Node,
        index: int,
        array: npt.NDArray[np.generic],
        scale: npt.NDArray[np.float32],
    ) -> ir.Value:
        """DQ of ``array`` rounded to int32 in steps of ``scale`` (one, or one per element)."""
        source = node.inputs[index]
        name = (source.name if source is not None else None) or f"{node.name}/bias"
        steps = np.rint(array.astype(np.float64).reshape(-1) / scale.astype(np.float64))
        q = np.clip(steps, -_LARGEST, _LARGEST).astype(np.int32)
        per_tensor = scale.size == 1
        tape = Tape(self.graph, f"{name}/q")
        dq = tape.op(
            "DequantizeLinear",
            add_initializer(self.graph, f"{name}/q", q),
            add_initializer(
                self.graph, f"{name}/scale", scale.reshape(() if per_tensor else (-1,))
            ),
            axis=None if per_tensor else 0,
        )
        dq.type, dq.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(q.shape)
        self.graph.insert_before(node, tape.nodes)
        inherit(tape.nodes, [node])
        return dq  # type: ignore[no-any-return]

    def float32(self, value: ir.Value) -> ir.Value:
        """``value`` itself, or its Cast to float32."""
        if self.dtype_of(value) is ir.DataType.FLOAT:
            return value
        if value not in self._float32:
            tape = Tape(self.graph, value.name or "")
            cast = tape.op("Cast", value, to=ir.DataType.FLOAT)
            _describe(value, cast, ir.DataType.FLOAT)
            self._insert(tape.nodes, value)
            self._float32[value] = cast
        return self._float32[value]

    def parameters(self, value: str) -> tuple[ir.Value, ir.Value | None]:
        """Initializers (scale, zero point) of a static activation, one pair per owner.

        8-bit floats have no zero point from the opset on at which QuantizeLinear can name its type
        otherwise. With one, onnxruntime 1.31.1 takes them for integers: it drops a Relu in front,
        and fuses Q and DQ into integer operators that then refuse the model.
        """
        assert self.state.plan is not None
        if value not in self.state.plan.values:
            stored_parameters(self.state, value)  # raises, saying what is missing
        owner = self.state.plan.owner(value)
        if owner not in self._parameters:
            scale, zero_point = stored_parameters(self.state, owner)
            dtype = value_spec(self.state.plan, owner).dtype
            self._parameters[owner] = (
                add_initializer(self.graph, f"{owner}/scale", scale),
                self._zero_point(owner, zero_point, dtype),
            )
        return self._parameters[owner]

    def scalar(self, number: npt.NDArray[np.generic] | np.generic, hint: str) -> ir.Value:
        """An initializer shared by all who want the same small constant."""
        array = np.asarray(number)
        key = (str(array.dtype), array.tobytes())
        if key not in self._scalars:
            self._scalars[key] = add_initializer(self.graph, f"quantize/{hint}", array)
        return self._scalars[key]

    def _by_row(self, tape: Tape, x: ir.Value, spec: QSpec) -> ir.Value:
        zero = spec.dtype.numpy().type(0 if spec.is_signed else 2 ** (spec.dtype.bitwidth - 1))
        bound = spec.qmax - int(zero)
        magnitude = tape.op("Abs", x)
        if self.opset >= 18:  # ReduceMax takes its axes as an input since opset 18
            axes = self.scalar(np.array([-1], np.int64), "last_axis")
            largest = tape.op("ReduceMax", magnitude, axes, keepdims=1)
        else:
            largest = tape.op("ReduceMax", magnitude, axes=[-1], keepdims=1)
        steps = tape.op("Div", largest, self.scalar(np.float32(bound), "bound"))
        scale = tape.op("Max", steps, self.scalar(_TINY, "tiny"))
        one, middle = self.scalar(np.float32(1.0), "one"), self.scalar(zero, "middle")
        q = tape.op("QuantizeLinear", tape.op("Div", x, scale), one, middle)
        return tape.op("Mul", tape.op("DequantizeLinear", q, one, middle), scale)  # type: ignore[no-any-return]

    def _quantized_constant(self, value: ir.Value, array: npt.NDArray[np.generic]) -> ir.Value:
        scale, zero_point = stored_parameters(self.state, value.name or "")
        assert self.state.plan is not None
        spec = value_spec(self.state.plan, value.name or "")
        q = quantize_as(np.asarray(array, np.float32), scale, zero_point, spec)
        return add_initializer(self.graph, f"{value.name}/q", integer_tensor(q, spec.dtype))

    def _stored_type(self, value: str) -> ir.DataType:
        assert self.state.plan is not None
        return value_spec(self.state.plan, value).dtype

    def _zero_point(
        self, owner: str, zeros: npt.NDArray[np.int32], dtype: ir.DataType
    ) -> ir.Value | None:
        if QSpec(dtype).is_float8 and self.opset >= _TYPED_SINCE:
            return None
        return add_initializer(self.graph, f"{owner}/zero_point", integer_tensor(zeros, dtype))

    def _domain_of(self, dtype: ir.DataType | None) -> str:
        """Domain of Q and DQ: the standard ones take 16-bit integers from opset 21 on."""
        wide = dtype in (ir.DataType.INT16, ir.DataType.UINT16)
        if not wide or self.opset >= _WIDE_SINCE:
            return ""
        self.graph.opset_imports.setdefault("com.microsoft", 1)
        return "com.microsoft"

    def _insert(self, nodes: list[ir.Node], value: ir.Value) -> None:
        """Put ``nodes`` right behind what produces ``value``, or at the start of the graph."""
        anchor = value
        if value in self._float32 and nodes[-1] is not self._float32[value].producer():
            anchor = self._float32[value]
        producer = anchor.producer()
        if producer is not None and producer.graph is self.graph:
            self.graph.insert_after(producer, nodes)
            inherit(nodes, [producer])
        else:
            self.graph.insert_before(next(iter(self.graph)), nodes)
            readers = [use.node for use in value.uses() if use.node not in nodes]
            inherit(nodes, readers[:1])


def _describe(source: ir.Value, value: ir.Value, dtype: ir.DataType | None) -> None:
    value.shape = _inner_shape(source)
    if dtype is not None:
        value.type = ir.TensorType(dtype)

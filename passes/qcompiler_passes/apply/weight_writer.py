"""Write weights that are rounded while activations stay float, one DequantizeLinear each.

Nothing is read while the graph is written: constants are lazy, so that of a model larger than
memory one weight at a time is packed, when the file is saved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer
from qcompiler.ir.provenance import inherit
from qcompiler.numerics.codebooks import CODEBOOKS
from qcompiler.numerics.packing import integer_tensor
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import Granularity, QSpec
from qcompiler_passes.apply.weight_functions import DOMAIN, LOOK_UP, SHIFT_ROWS
from qcompiler_passes.planned import SPEC

__all__ = ["Rounded", "WeightWriter", "add_lazy", "scale_shape", "stored_dtype"]


@dataclasses.dataclass(frozen=True, slots=True)
class Rounded:
    """A rounded weight of a mapping, of which nothing has been read yet.

    Attributes:
        weights: By node name and input index; may read a file at each access.
        key: Which one.
        spec: Its spec.
        shape: Shape of the constant.
    """

    weights: Mapping[tuple[str, int], QTensor]
    key: tuple[str, int]
    spec: QSpec
    shape: tuple[int, ...]

    def tensor(self) -> QTensor:
        """The rounded weight itself."""
        return self.weights[self.key]


def add_lazy(
    graph: ir.Graph,
    hint: str,
    shape: tuple[int, ...],
    dtype: ir.DataType,
    make: Callable[[], npt.NDArray[Any]],
) -> ir.Value:
    """Register a constant whose elements ``make`` computes at each access.

    Args:
        graph: Where.
        hint: For its name.
        shape: Of what ``make`` gives.
        dtype: Element type; types of fewer than 8 bits are packed when the file is written.
        make: Called whenever the numbers are wanted; any type that holds them.
    """
    tensor = ir.LazyTensor(lambda: integer_tensor(make(), dtype), dtype, ir.Shape(shape))
    value = add_initializer(graph, hint, tensor)
    tensor.name = value.name
    return value


def scale_shape(spec: QSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales in the graph: a scalar, one per channel, or one per block."""
    if spec.granularity is Granularity.TENSOR:
        return ()
    assert spec.axis is not None, "channels and blocks have an axis"
    axis = spec.axis % len(shape)
    if spec.group_size is None:
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // spec.group_size), *shape[axis + 1 :])


def stored_dtype(spec: QSpec, opset: int) -> ir.DataType:
    """Element type that holds the spec's integers in the graph.

    DequantizeLinear takes 2-bit types from opset 25 on; before, they sit in a byte each.
    """
    if spec.dtype.bitwidth == 2 and opset < 25:
        return ir.DataType.INT8 if spec.is_signed else ir.DataType.UINT8
    return spec.dtype


class WeightWriter:
    """Writes the weights of one graph; a constant under one spec is written once."""

    def __init__(self, graph: ir.Graph) -> None:
        """Write into ``graph``."""
        self.graph = graph
        self.opset = graph.opset_imports.get("", 0)
        self._written: dict[tuple[ir.Value, QSpec], tuple[ir.Value, ...]] = {}
        self._tables: dict[tuple[str, ir.DataType], ir.Value] = {}

    def write(self, node: ir.Node, index: int, weight: Rounded, dtype: ir.DataType) -> ir.Value:
        """What dequantizes the weight, placed before ``node``; codes are looked up by a function.

        Args:
            node: The reader.
            index: Which of its inputs the constant is.
            weight: The rounded constant.
            dtype: Float type of the result.
        """
        source, spec = node.inputs[index], weight.spec
        assert source is not None, "a planned weight is there"
        name = source.name or f"{node.name}/weight"
        if (source, spec) not in self._written:
            self._written[source, spec] = self._constants(name, weight, dtype)
        q, scale, *rest = self._written[source, spec]
        tape = Tape(self.graph, q.name or "")
        if spec.scales is not None:
            scale = self._scales(tape, (scale, *rest[-2:]), weight, dtype)
        if spec.codebook:
            result = self._look_up(tape, q, scale, weight, dtype)
        elif spec.float_zero:
            size = np.asarray(spec.group_size or weight.shape[0], np.int64)
            result = tape.op(SHIFT_ROWS, q, rest[0], scale, size, domain=DOMAIN)
            if dtype is not ir.DataType.FLOAT:
                result = tape.op("Cast", result, to=dtype)
        else:
            result = tape.op(
                "DequantizeLinear", q, scale, rest[0], axis=spec.axis, block_size=spec.group_size
            )
        result.type, result.shape = ir.TensorType(dtype), ir.Shape(weight.shape)
        tape.nodes[-1].metadata_props[SPEC] = str(spec)
        self.graph.insert_before(node, tape.nodes)
        inherit(tape.nodes, [node])
        return result

    def _constants(self, name: str, weight: Rounded, dtype: ir.DataType) -> tuple[ir.Value, ...]:
        """Elements; scale; zero point unless codes; where scales are quantized theirs, too."""
        spec, scales = weight.spec, weight.spec.scales
        stored, shape = stored_dtype(spec, self.opset), scale_shape(spec, weight.shape)

        def add(
            part: str,
            dims: tuple[int, ...],
            kind: ir.DataType,
            of: Callable[[QTensor], npt.NDArray[Any]],
        ) -> ir.Value:
            hint = f"{name}/{part}"
            return add_lazy(self.graph, hint, dims, kind, lambda: of(weight.tensor()).reshape(dims))

        rows = bool(spec.codebook) or spec.float_zero  # functions take scales by row
        rows_of = (1, *shape) if len(shape) == 1 else shape
        found = [add("q", weight.shape, stored, lambda tensor: tensor.q)]
        if scales is None:
            if spec.float_zero:
                dtype = ir.DataType.FLOAT
            numbers = dtype.numpy()
            dims = rows_of if rows else shape
            found.append(add("scale", dims, dtype, lambda tensor: tensor.scale.astype(numbers)))
        else:
            count = (math.prod(shape),)
            found.append(add("scale/q", count, scales.dtype, lambda tensor: _scale(tensor).q))
        if spec.float_zero:
            found.append(add("zero_point", rows_of, ir.DataType.FLOAT, _zeros))
        elif not spec.codebook:
            found.append(add("zero_point", shape, stored, _zeros))
        if scales is not None:
            groups, kind = _vector_groups(scales, count), scales.dtype
            found += [
                add("scale/scale", groups, ir.DataType.FLOAT, lambda t: _scale(t).scale),
                add("scale/zero_point", groups, kind, lambda tensor: _zeros(_scale(tensor))),
            ]
        return tuple(found)

    def _scales(
        self,
        tape: Tape,
        constants: tuple[ir.Value, ...],
        weight: Rounded,
        dtype: ir.DataType,
    ) -> ir.Value:
        """Dequantize scales, which are one vector by column."""
        spec = weight.spec
        assert spec.scales is not None, "the caller looked"
        blocks = len(constants[1].shape or ()) > 0
        vector = tape.op(
            "DequantizeLinear",
            *constants,
            axis=0 if blocks else None,
            block_size=spec.scales.group_size if blocks else None,
        )
        if dtype is not ir.DataType.FLOAT:
            vector = tape.op("Cast", vector, to=dtype)
        if spec.granularity is not Granularity.BLOCK:
            by_row = bool(spec.codebook) or spec.float_zero
            rows = np.asarray([1, -1] if by_row else [-1], np.int64)
            return tape.op("Reshape", vector, rows)  # type: ignore[no-any-return]
        groups, columns = scale_shape(spec, weight.shape)
        by_column = tape.op("Reshape", vector, np.asarray([columns, groups], np.int64))
        return tape.op("Transpose", by_column, perm=[1, 0])  # type: ignore[no-any-return]

    def _look_up(
        self, tape: Tape, q: ir.Value, scale: ir.Value, weight: Rounded, dtype: ir.DataType
    ) -> ir.Value:
        spec = weight.spec
        key = (spec.codebook, dtype)
        if key not in self._tables:
            entries = CODEBOOKS[spec.codebook].astype(dtype.numpy())
            self._tables[key] = add_initializer(self.graph, f"codebook/{spec.codebook}", entries)
        size = np.asarray(spec.group_size or weight.shape[0], np.int64)
        return tape.op(LOOK_UP, q, self._tables[key], scale, size, domain=DOMAIN)  # type: ignore[no-any-return]


def _vector_groups(scales: QSpec, count: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of scales. One of them is a scalar: a single block is no block to ORT."""
    groups = scale_shape(scales, count)
    return () if groups == (1,) else groups


def _scale(tensor: QTensor) -> QTensor:
    assert tensor.stored_scale is not None, "a spec with scales has them"
    return tensor.stored_scale


def _zeros(tensor: QTensor) -> npt.NDArray[Any]:
    if tensor.zero_point is None:
        return np.zeros(tensor.scale.shape, np.int32)
    return tensor.zero_point

"""Embedding tables in blocks: ``com.microsoft:GatherBlockQuantized``.

Its data are those of ``MatMulNBits``: the table ``[V, D]`` of a model whose output layer multiplies
by the same weight needs no copy of its own
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, replace
from qcompiler.numerics.nbits import NBitsLayout, nbits_layout
from qcompiler.numerics.packing import pack_bits
from qcompiler.numerics.qtensor import QTensor
from qcompiler.schemes import QSpec
from qcompiler_passes.apply.weight_writer import add_lazy
from qcompiler_passes.planned import KERNEL, TIED

__all__ = ["gather_blocks", "share_tables"]

Key = tuple[str, int]


def gather_blocks(
    graph: ir.Graph,
    node: ir.Node,
    spec: QSpec,
    weights: Mapping[Key, QTensor],
    product: ir.Node | None,
    dtype: ir.DataType,
) -> None:
    """Replace a Gather of rows by one that dequantizes them.

    Args:
        graph: Holds the node.
        node: Gather on axis 0 of a constant table ``[V, D]``.
        spec: Blocks along axis 1 that divide D.
        weights: Rounded weights.
        product: The MatMul whose weight is the table transposed, in the same form, or None.
        dtype: Float type of the result.
    """
    layout = nbits_layout(spec)
    assert isinstance(layout, NBitsLayout), "the row's conditions want blocks"
    table, ids = node.inputs[0], node.inputs[1]
    assert table is not None
    assert ids is not None
    assert table.shape is not None
    rows, width = (int(size) for size in table.shape.numpy())
    groups, bits, block = width // layout.block_size, layout.bits, layout.block_size

    def rounded() -> QTensor:
        return weights[str(node.name), 0] if product is None else weights[str(product.name), 1]

    def by_row(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array if product is None else array.T

    tape, name = Tape(graph, str(node.name)), table.name

    inputs = [
        add_lazy(
            graph,
            f"{name}/blocks",
            (rows, groups, block * bits // 8),
            ir.DataType.UINT8,
            lambda: pack_bits(by_row(rounded().q).reshape(rows, groups, block), bits),
        ),
        ids,
        add_lazy(
            graph,
            f"{name}/blocks/scale",
            (rows, groups, 1),
            dtype,
            lambda: by_row(rounded().scale).astype(dtype.numpy())[..., None],
        ),
    ]
    if not spec.symmetric:

        def zeros() -> npt.NDArray[np.uint8]:
            found = rounded().zero_point
            assert found is not None, "asymmetric unsigned blocks have zero points"
            return pack_bits(by_row(found)[..., None].astype(np.uint8), bits)

        shape = (rows, groups, 1)
        inputs.append(add_lazy(graph, f"{name}/blocks/zero", shape, ir.DataType.UINT8, zeros))
    blocks = tape.op(
        "GatherBlockQuantized",
        *inputs,
        domain="com.microsoft",
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=2,
    )
    main = tape.nodes[-1]
    main.metadata_props[KERNEL] = node.metadata_props[KERNEL]
    if product is not None:
        main.metadata_props[TIED] = str(product.name)
    rank = len(ids.shape) if ids.shape is not None else 0
    result = tape.op("Reshape", blocks, np.asarray([0] * rank + [width], np.int64))
    old = node.outputs[0]
    replace(graph, [node], tape.nodes, {old: result})
    main.name = node.name
    if not table.uses() and not table.is_graph_output() and table.is_initializer():
        del graph.initializers[table.name or ""]


def share_tables(graph: ir.Graph) -> None:
    """Let tables read the data of the products that they are tied to."""
    products = {node.name: node for node in graph if node.op_type == "MatMulNBits"}
    for node in list(graph):
        product = products.get(node.metadata_props.pop(TIED, ""))
        if product is None:
            continue
        data, scale = product.inputs[1], product.inputs[2]
        own = node.inputs[2]
        assert own is not None
        node.replace_input_with(0, data)
        if own.dtype is ir.DataType.FLOAT:
            tape = Tape(graph, str(node.name))
            node.replace_input_with(2, tape.op("Unsqueeze", scale, np.asarray([-1], np.int64)))
            producer = scale.producer() if scale is not None else None
            if producer is None:
                graph.insert_before(node, tape.nodes)

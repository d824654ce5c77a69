"""Weight-only products: ``MatMulNBits``, or a float MatMul behind functions that make the weight.

All that a file holds in another form than the kernel's is brought into it by nodes that read
constants alone: the runtime computes them once, when it loads the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import Tape, add_initializer, replace
from qcompiler.numerics.codebooks import CODEBOOKS
from qcompiler.numerics.nbits import (
    NBitsLayout,
    container_table,
    kernel_data,
    kernel_scale,
    kernel_zero_point,
    nbits_layout,
    planes_of,
    split_planes,
)
from qcompiler.schemes import QSpec
from qcompiler_passes.apply.weight_functions import (
    DOMAIN,
    LOOK_UP,
    SCALE_ROWS,
    SHIFT_ROWS,
    unpack_name,
)
from qcompiler_passes.apply.weight_writer import add_lazy
from qcompiler_passes.lower.qdq_sites import Operand, Site, refuse

__all__ = ["dequantized_weight", "float_zero_product", "nbits_inputs"]

_MADE = "qcompiler.nbits"  # Graph.meta: what was made of each weight


def nbits_inputs(
    site: Site, tape: Tape
) -> tuple[NBitsLayout, tuple[ir.Value, ir.Value, ir.Value | None]]:
    """Data, scales and zero points of ``MatMulNBits`` for the weight of a site.

    Sites that read one weight read one set of them: ALBERT's layers have all weights in common.

    Raises:
        QcError: QC501, the kernel has no form for the spec.
    """
    w = site.operand(1)
    spec, (k, n) = w.spec, w.matrix
    layout = nbits_layout(spec, k)
    if isinstance(layout, str):
        raise refuse(site.node, layout, site.kernel)
    made = tape.graph.meta.setdefault(_MADE, {})
    key = (w.q, w.scale, w.zero_point, spec)
    if key not in made:
        data = _data(tape, w, spec, layout)
        scale, zero = _scale(tape, w, spec, layout, k, n), _zero(tape, w, spec, layout, k, n)
        made[key] = data, scale, zero
    return layout, made[key]


def _data(tape: Tape, w: Operand, spec: QSpec, layout: NBitsLayout) -> ir.Value:
    k, n = w.matrix
    blocks, name = layout.blocks(k), w.q.name
    shape = (n, blocks, layout.block_size * layout.bits // 8)

    def container() -> npt.NDArray[np.uint8]:
        return kernel_data(w.integers(), spec, layout)

    if layout.is_native:
        return add_lazy(tape.graph, f"{name}/blocks", shape, ir.DataType.UINT8, container)
    planes = _planes(tape, f"{name}/blocks", shape, layout.bits, layout.planes, container)
    first = 1 if spec.codebook == "b1" else 0
    data = tape.op(
        unpack_name(layout.planes, layout.bits, first),
        *planes,
        np.asarray(shape, np.int64),
        domain=DOMAIN,
    )
    table = container_table(spec)
    if table is not None and not first:
        index = tape.op("Cast", data, to=ir.DataType.INT32)
        data = tape.op("Gather", table, index)
    return data  # type: ignore[no-any-return]


def _planes(
    tape: Tape,
    hint: str,
    shape: tuple[int, ...],
    bits: int,
    planes: tuple[int, ...],
    container: Callable[[], npt.NDArray[np.uint8]],
) -> list[ir.Value]:
    """The container bytes of ``shape`` as one constant per plane."""
    found = []
    for index, plane in enumerate(planes):
        packed = (*shape[:-1], shape[-1] * plane // bits)
        found.append(
            add_lazy(
                tape.graph,
                f"{hint}/plane{plane}",
                packed,
                ir.DataType.UINT8,
                lambda index=index: split_planes(container(), bits, planes)[index],  # type: ignore[misc]
            )
        )
    return found


def _scale(tape: Tape, w: Operand, spec: QSpec, layout: NBitsLayout, k: int, n: int) -> ir.Value:
    """Scales ``[N, blocks]``."""
    groups = 1 if spec.group_size is None else -(-k // spec.group_size)
    vector = w.scale_vector()
    if vector is None:
        scale = add_lazy(
            tape.graph,
            f"{w.scale.name}/blocks",
            (n, groups),
            ir.DataType.FLOAT,
            lambda: kernel_scale(w.scales(), spec),
        )
    else:
        floats = _scaled_vector(tape, vector, spec)
        scale = tape.op("Reshape", floats, np.asarray([n, groups], np.int64))
        if spec.codebook == "fp4":  # the table holds doubles
            scale = tape.op("Mul", scale, np.asarray(0.5, np.float32))
    blocks = layout.blocks(k)
    if layout.blocks_per_scale == 1:
        return scale
    each = layout.blocks_per_scale or blocks
    columns = tape.op("Unsqueeze", scale, np.asarray([2], np.int64))
    repeated = tape.op("Expand", columns, np.asarray([n, groups, each], np.int64))
    rows = tape.op("Reshape", repeated, np.asarray([n, groups * each], np.int64))
    if groups * each == blocks:
        return rows  # type: ignore[no-any-return]
    ends = (np.asarray([end], np.int64) for end in (0, blocks, 1))
    return tape.op("Slice", rows, *ends)  # type: ignore[no-any-return]


def _zero(
    tape: Tape, w: Operand, spec: QSpec, layout: NBitsLayout, k: int, n: int
) -> ir.Value | None:
    """Packed zero points ``[N, bytes]``, or None where all are the kernel's default."""
    shape = (n, math.ceil(layout.blocks(k) * layout.bits / 8))
    if not spec.symmetric and not spec.float_zero:
        return add_lazy(
            tape.graph,
            f"{w.q.name}/zero_points",
            shape,
            ir.DataType.UINT8,
            lambda: kernel_zero_point(w.zeros(), k, spec, layout),
        )
    if layout.zero == 1 << (layout.bits - 1):
        return None
    byte = sum(layout.zero << start for start in range(0, 8, layout.bits))
    return tape.op("Expand", np.asarray([[byte]], np.uint8), np.asarray(shape, np.int64))  # type: ignore[no-any-return]


def float_zero_product(tape: Tape, w: Operand, x: ir.Value) -> ir.Value:
    """What float zero points add to a product with zero points in the middle.

    ``(q - z) s = (q - middle) s + (middle - z) s``: the second part is one number for a group, and
    multiplies the sum of the group's inputs. The kernel takes float zero points only at a
    sixteenth of its speed (onnxruntime 1.31.1).
    """
    (k, n), spec = w.matrix, w.spec
    size = spec.group_size or k
    groups = -(-k // size)
    middle = np.float32(1 << (spec.width - 1))
    offsets = add_lazy(
        tape.graph,
        f"{w.q.name}/offsets",
        (groups, n),
        ir.DataType.FLOAT,
        lambda: (middle - w.zeros()) * w.scales(),
    )
    name = f"groups/{k}x{size}"
    members = tape.graph.initializers.get(name)
    if members is None:
        belongs = np.arange(k)[:, None] // size == np.arange(groups)
        members = add_initializer(tape.graph, name, belongs.astype(np.uint8))
    ones = tape.op("Cast", members, to=ir.DataType.FLOAT)
    return tape.op("MatMul", tape.op("MatMul", x, ones), offsets)  # type: ignore[no-any-return]


def dequantized_weight(site: Site) -> None:
    """Put functions of constants where the weight of a site is dequantized.

    A DequantizeLinear of constants would run whenever the model does: runtimes protect it from
    being folded.
    """
    graph = site.node.graph
    assert isinstance(graph, ir.Graph), "sites are in the main graph"
    w = site.operand(1)
    spec, (k, n) = w.spec, w.matrix
    tape = Tape(graph, w.q.name or "")
    codes = _codes(tape, w, spec)
    vector = w.scale_vector()
    if vector is None:
        groups = 1 if spec.group_size is None else -(-k // spec.group_size)
        scale = add_lazy(graph, f"{w.scale.name}/rows", (groups, n), ir.DataType.FLOAT, w.scales)
    else:
        floats = _scaled_vector(tape, vector, spec)
        by_column = tape.op("Reshape", floats, np.asarray([n, -1], np.int64))
        scale = tape.op("Transpose", by_column, perm=[1, 0])
    size = np.asarray(spec.group_size or k, np.int64)
    table = CODEBOOKS.get(spec.codebook)
    if table is None and spec.symmetric:
        table = (np.arange(1 << spec.width) - (1 << (spec.width - 1))).astype(np.float32)
    if table is not None:
        result = tape.op(LOOK_UP, codes, table, scale, size, domain=DOMAIN)
    else:
        kind = ir.DataType.FLOAT if spec.float_zero else ir.DataType.UINT8
        shape, hint = (-(-k // int(size)), n), f"{w.q.name}/zeros"
        zeros = add_lazy(graph, hint, shape, kind, lambda: w.zeros() + w.shift)
        name = SHIFT_ROWS if spec.float_zero else SCALE_ROWS
        result = tape.op(name, codes, zeros, scale, size, domain=DOMAIN)
    old = w.dequantize.outputs[0]
    if old.dtype not in (None, ir.DataType.FLOAT):
        result = tape.op("Cast", result, to=old.dtype)
    replace(graph, [w.dequantize], tape.nodes, {old: result})


def _codes(tape: Tape, w: Operand, spec: QSpec) -> ir.Value:
    """Unsigned codes ``[K, N]``: stored as they are where a type of 4 or 8 bits holds them."""
    k, n = w.matrix
    if spec.width == spec.dtype.bitwidth and spec.width in (4, 8) and not spec.is_signed:
        return w.q
    planes, size = planes_of(spec.width), -(-k * n // 8) * 8

    def container() -> npt.NDArray[np.uint8]:
        flat = np.zeros(size, np.uint8)
        flat[: k * n] = (w.integers() + w.shift).reshape(-1)
        return flat

    parts = _planes(tape, f"{w.q.name}/codes", (size,), 8, planes, container)
    flat = np.asarray([-1], np.int64)
    codes = parts[0]
    if planes != (8,):
        codes = tape.op(unpack_name(planes, 8), *parts, flat, domain=DOMAIN)
    ends = (np.asarray([end], np.int64) for end in (0, k * n))
    return tape.op("Reshape", tape.op("Slice", codes, *ends), np.asarray([k, n], np.int64))  # type: ignore[no-any-return]


def _scaled_vector(tape: Tape, vector: ir.Node, spec: QSpec) -> ir.Value:
    """The scales as one vector, by a function instead of the DequantizeLinear ``vector``."""
    assert spec.scales is not None, "only quantized scales are computed"
    q, scale, zero_point = vector.inputs
    assert scale is not None, "a DequantizeLinear has a scale"
    size = np.asarray(spec.scales.group_size, np.int64)
    if not scale.shape:  # one for all
        flat = np.asarray([-1], np.int64)
        zeros = tape.op("Cast", zero_point, to=ir.DataType.INT32)  # there is no Reshape of 4 bits
        scale, zero_point = tape.op("Reshape", scale, flat), tape.op("Reshape", zeros, flat)
    return tape.op(SCALE_ROWS, q, zero_point, scale, size, domain=DOMAIN)  # type: ignore[no-any-return]

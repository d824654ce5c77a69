"""What is known of integer vectors that are computed from shapes.

Each element of such a vector is a number, or the name of a dimension (names are equal when sizes
are, which is what ONNX says of ``dim_param``), or unknown. An abstract value follows Shape through
Gather, Slice, Concat, Squeeze, Unsqueeze and Cast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from qcompiler.analysis.dim_numbers import LONGEST
from qcompiler.ir.edit import add_initializer, constant, replace

__all__ = ["fold_shapes"]

Dim = int | str | None
Dims = tuple[Dim, ...]
Known = dict[ir.Value, Dims]

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


def fold_shapes(graph: ir.Graph) -> bool:
    """Replace shape vectors that are wholly known, and simplify Reshape and Expand by the rest."""
    known: Known = {}
    changed = False
    for node in list(graph):
        if node.domain:
            continue
        rule = _RULES.get(node.op_type)
        dims = rule(node, known) if rule else None
        if dims is not None:
            output = node.outputs[0]
            known[output] = dims
            if _all_numbers(dims) and not output.is_graph_output():
                changed |= _become_constant(graph, node, dims, known)
        elif node.op_type == "Reshape":
            _tell_shape(node, known)
            changed |= _simplify_reshape(graph, node, known)
        elif node.op_type == "Expand":
            changed |= _simplify_expand(graph, node, known)
    return changed


def _dims_of(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _dims_held(value: ir.Value | None, known: Known) -> Dims | None:
    """The elements of an integer vector or scalar."""
    if value is None:
        return None
    if value in known:
        return known[value]
    if value.dtype not in _INTEGERS and value.dtype is not None:
        return None
    tensor = value.const_value
    if tensor is not None and tensor.size > LONGEST:
        return None
    array = constant(value)
    if array is None or array.dtype.kind != "i" or array.ndim > 1 or array.size > LONGEST:
        return None
    return tuple(int(x) for x in array.ravel())


def _int(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def _shape(node: ir.Node, known: Known) -> Dims | None:
    dims = _dims_of(node.inputs[0])
    if dims is None:
        return None
    end = node.attributes.get("end")
    return dims[_int(node, "start", 0) : None if end is None else end.as_int()]


def _gather(node: ir.Node, known: Known) -> Dims | None:
    held, index = _dims_held(node.inputs[0], known), constant(node.inputs[1])
    if node.inputs[0] not in known or held is None or index is None or index.ndim > 1:
        return None
    if any(not -len(held) <= int(i) < len(held) for i in index.ravel()):
        return None
    return tuple(held[int(i)] for i in index.ravel())


def _slice(node: ir.Node, known: Known) -> Dims | None:
    held = _dims_held(node.inputs[0], known)
    rest = [constant(value) for value in node.inputs[1:] if value is not None]
    if node.inputs[0] not in known or held is None or any(item is None for item in rest):
        return None
    numbers = [[int(x) for x in item.ravel()] for item in rest if item is not None]
    if any(len(item) != 1 for item in numbers) or None in node.inputs:
        return None
    step = numbers[3][0] if len(numbers) > 3 else 1
    return held[slice(numbers[0][0], numbers[1][0], step)] if step > 0 else None


def _concat(node: ir.Node, known: Known) -> Dims | None:
    parts = [_dims_held(value, known) for value in node.inputs]
    if not any(value in known for value in node.inputs):
        return None
    if any(part is None for part in parts) or sum(len(part or ()) for part in parts) > LONGEST:
        return None
    return tuple(dim for part in parts for dim in part or ())


def _same(node: ir.Node, known: Known) -> Dims | None:
    return known.get(node.inputs[0]) if node.inputs[0] is not None else None


def _cast(node: ir.Node, known: Known) -> Dims | None:
    return _same(node, known) if node.attributes["to"].as_int() in _INTEGERS else None


# Scalars and vectors of one element are the same abstract value; their ranks come from the node.
_RULES: Mapping[str, Callable[[ir.Node, Known], Dims | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Identity": _same,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _same,
    "Unsqueeze": _same,
}


def _all_numbers(dims: Dims) -> bool:
    return all(isinstance(dim, int) for dim in dims)


def _become_constant(graph: ir.Graph, node: ir.Node, dims: Dims, known: Known) -> bool:
    output = node.outputs[0]
    array = np.asarray(dims, np.int64)
    if node.op_type == "Cast":
        array = array.astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    elif node.op_type != "Shape" and any(v and v.dtype is ir.DataType.INT32 for v in node.inputs):
        array = array.astype(np.int32)
    rank = _rank_after(node)
    if not output.uses() or rank is None or (rank == 0 and array.size != 1):
        return False
    value = add_initializer(
        graph, f"{output.name}/folded", array.reshape(()) if rank == 0 else array
    )
    replace(graph, [node], [], {output: value})
    known[value] = dims
    return True


def _rank_after(node: ir.Node) -> int | None:
    """0 or 1, the rank of a shape vector's node; None when it is not certain."""
    if node.op_type in ("Shape", "Concat", "Slice"):
        return 1
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        return None if index is None else index.ndim
    if node.op_type == "Unsqueeze":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        inner = node.inputs[0]
        rank = inner.shape.rank() if inner is not None and inner.shape is not None else None
        return 1 if axes is not None and axes.size == 1 and rank == 0 else None
    shape = node.outputs[0].shape
    return None if shape is None or shape.rank() > 1 else shape.rank()


def _tell_shape(node: ir.Node, known: Known) -> None:
    """Let the output of a Reshape have the shape it is given, where that is known."""
    output, target = node.outputs[0], _dims_held(node.inputs[1], known)
    if output.shape is None and target is not None and 0 not in target:
        output.shape = ir.Shape([None if dim == -1 else dim for dim in target])


def _simplify_reshape(graph: ir.Graph, node: ir.Node, known: Known) -> bool:
    """Reshape to dimensions the input has at the same places: zeros, and one -1."""
    shape = node.inputs[1]
    target, have = _dims_held(shape, known), _dims_of(node.inputs[0])
    if shape not in known or target is None or have is None or 0 in target:
        return False
    wanted: list[int] = []
    for axis, dim in enumerate(target):
        if isinstance(dim, int):
            wanted.append(dim)
        elif dim is not None and axis < len(have) and have[axis] == dim:
            wanted.append(0)
        else:
            wanted.append(-1)
    if wanted.count(-1) > 1 or _all_numbers(target):
        return False
    if wanted.count(-1) == 1 and not _remainder_is_certain(target, wanted):
        return False
    vector = add_initializer(graph, f"{node.name}/shape", np.asarray(wanted, np.int64))
    node.replace_input_with(1, vector)
    node.attributes.pop("allowzero", None)
    known[vector] = target
    return True


def _remainder_is_certain(target: Dims, wanted: list[int]) -> bool:
    """Whether the -1 means the same, for empty inputs too.

    With a size of zero among the others -1 cannot be worked out. So it must have been a -1 before,
    with the same limit, or all other sizes must be positive numbers.
    """
    return -1 in target or all(dim > 0 for dim in wanted if dim != -1)


def _simplify_expand(graph: ir.Graph, node: ir.Node, known: Known) -> bool:
    """Expand to the dimensions the input has already."""
    x, output = node.inputs[0], node.outputs[0]
    target, have = _dims_held(node.inputs[1], known), _dims_of(x)
    if x is None or target is None or have is None or len(target) > len(have):
        return False
    tail = have[len(have) - len(target) :]
    if any(want is None or want not in (1, dim) for want, dim in zip(target, tail, strict=True)):
        return False
    if output.is_graph_output():
        return False
    replace(graph, [node], [], {output: x})
    return True

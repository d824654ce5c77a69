"""A stable text of a model: for golden tests, diffs, dumps and people.

Small constants are printed whole, large ones as range and digest; attributes are sorted; there are
no addresses and no ids, so equal models print equally.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompiler.ir.walk import body_graphs, op_name

__all__ = ["model_text"]

_WHOLE = 8  # constants up to this many elements are printed whole


def model_text(model: ir.Model, *, digest: bool = True) -> str:
    """The whole model. ``digest=False`` leaves out the contents of large constants (faster)."""
    opsets = " ".join(
        f"{domain or 'onnx'} {version}" for domain, version in sorted(model.opset_imports.items())
    )
    lines = [f"model opset {opsets}", *_graph_lines(model.graph, "", digest)]
    for function in model.functions.values():
        lines.append(f"function {function.domain}:{function.name}")
        lines.extend(_body_lines(function, "  ", digest))
    return "\n".join(lines) + "\n"


def _graph_lines(graph: ir.Graph, indent: str, digest: bool) -> Iterator[str]:
    yield f"{indent}graph {graph.name or ''}".rstrip()
    inner = indent + "  "
    for value in graph.inputs:
        yield f"{inner}in   %{value.name}: {_type(value)}"
    for name in sorted(graph.initializers):
        value = graph.initializers[name]
        yield f"{inner}init %{name}: {_type(value)} = {_tensor(value.const_value, digest)}"
    yield from _body_lines(graph, inner, digest)
    yield f"{inner}out  " + ", ".join(f"%{value.name}" for value in graph.outputs)


def _body_lines(graph: ir.Graph | ir.Function, indent: str, digest: bool) -> Iterator[str]:
    for node in graph:
        outputs = ", ".join(f"%{value.name}" if value.name else "_" for value in node.outputs)
        inputs = ", ".join("_" if value is None else f"%{value.name}" for value in node.inputs)
        attributes = "".join(
            f" {name}={_attribute(node.attributes[name], digest)}"
            for name in sorted(node.attributes)
            if node.attributes[name].type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        )
        yield f"{indent}{outputs} = {op_name(node)}({inputs}){attributes}"
        for body in body_graphs(node):
            yield from _graph_lines(body, indent + "  ", digest)


def _type(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    if value.shape is None:
        return f"{dtype}[?]"
    dims = [str(dim) if isinstance(dim, int) else str(dim.value or "?") for dim in value.shape]
    return f"{dtype}[{'x'.join(dims)}]"


def _attribute(attr: ir.Attr, digest: bool) -> str:
    if attr.type is ir.AttributeType.TENSOR:
        return _tensor(attr.as_tensor(), digest)
    if isinstance(attr.value, float):
        return f"{attr.value:g}"
    if isinstance(attr.value, list | tuple):
        return (
            "[" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in attr.value) + "]"
        )
    return repr(attr.value) if isinstance(attr.value, str) else str(attr.value)


def _tensor(tensor: ir.TensorProtocol | None, digest: bool) -> str:
    if tensor is None:
        return "<none>"
    if tensor.size <= _WHOLE:
        return np.array2string(
            np.asarray(tensor.numpy()), separator=", ", precision=6, threshold=_WHOLE
        ).replace("\n", "")
    if not digest:
        return f"<{'x'.join(map(str, tensor.shape))}>"
    array = tensor.numpy()
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    mark = hashlib.sha256(data.data).hexdigest()[:8]
    if array.dtype.kind in "fiu":
        return f"<{array.min():.6g}..{array.max():.6g} #{mark}>"
    return f"<#{mark}>"

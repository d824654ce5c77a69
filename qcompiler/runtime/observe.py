"""The concrete type and shape of every value of the main graph, found by running the model.

Symbolic shape inference gives up on some models; the runtime never does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import fresh_name
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["observe"]

Observed = dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]

# Nothing may be fused or folded away, and weights used once are not worth repacking.
_PLAIN = SessionSettings("disable", {"session.disable_prepacking": "1"})
_TENSOR = re.compile(r"tensor\((?P<element>\w+)\)")
_NAMES = {
    "float": ir.DataType.FLOAT,
    "double": ir.DataType.DOUBLE,
    **{dtype.name.lower(): dtype for dtype in ir.DataType},
}


def observe(model: ir.Model, feed: Feed) -> Observed:
    """Run the model once on ``feed`` and note what each value is.

    A ``Shape`` node is put on every value, so that the run gives shapes and no tensor outlives its
    last reader: memory is that of an ordinary run, however large the model's activations.

    Args:
        model: Left as it is.
        feed: Array by input name.

    Returns:
        dtype and shape by value name: inputs, initializers, and outputs of the main graph's
        nodes. Values that are no tensors (sequences, maps, absent optionals) are missing.

    Raises:
        QcError: QC607, the runtime cannot load or run the model on the feed.
    """
    found: Observed = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            shape = tuple(int(size) for size in value.const_value.shape.numpy())
            found[name] = (value.const_value.dtype.numpy(), shape)
    found.update((name, (array.dtype, array.shape)) for name, array in feed.items())
    made = [output for node in model.graph for output in node.outputs if _may_tap(output)]
    types = _types(model, made)
    wanted = [value for value in made if value.name in types]
    if not wanted:
        return found
    tapped, taps = _tapped(model, [str(value.name) for value in wanted])
    shapes = run(_open(tapped), feed, taps)
    for value, tap in zip(wanted, taps, strict=True):
        name = str(value.name)
        found[name] = (types[name].numpy(), tuple(int(size) for size in shapes[tap]))
    return found


def _may_tap(value: ir.Value) -> bool:
    return bool(value.name) and (value.type is None or isinstance(value.type, ir.TensorType))


def _types(model: ir.Model, values: Sequence[ir.Value]) -> dict[str, ir.DataType]:
    """Element type of each value that is a tensor; those the model does not state are asked."""
    types = {str(value.name): value.dtype for value in values if value.dtype is not None}
    unknown = [str(value.name) for value in values if value.name not in types]
    if unknown:
        types.update(_ask_types(model, unknown))
    return types


def _ask_types(model: ir.Model, names: Sequence[str]) -> Iterator[tuple[str, ir.DataType]]:
    """What the runtime infers: values become outputs of a session that never runs."""
    asked = model.clone()
    wanted = set(names)
    present = {value.name for value in asked.graph.outputs}
    asked.graph.outputs.extend(
        output
        for node in asked.graph
        for output in node.outputs
        if output.name in wanted and output.name not in present
    )
    for output in _open(asked).get_outputs():
        tensor = _TENSOR.fullmatch(output.type)
        if output.name in wanted and tensor is not None:
            yield output.name, _NAMES[tensor["element"]]


def _tapped(model: ir.Model, names: Sequence[str]) -> tuple[ir.Model, list[str]]:
    """A copy of the model whose added outputs are the shapes of the named values, in order."""
    copy = model.clone()
    values = {output.name: output for node in copy.graph for output in node.outputs}
    taps = []
    for name in names:
        node = ir.node("Shape", [values[name]], name=fresh_name(copy.graph, f"{name}/shape-tap"))
        tap = node.outputs[0]
        tap.name = fresh_name(copy.graph, f"{name}/shape")
        tap.type, tap.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
        copy.graph.append(node)
        copy.graph.outputs.append(tap)
        taps.append(tap.name)
    return copy, taps


def _open(model: ir.Model) -> ort.InferenceSession:
    try:
        return open_session(model, settings=_PLAIN)
    except QcError as error:
        found = error.diagnostic
        raise QcError(Code.FLOAT_MODEL_FAILS, found.where, found.message, found.hint) from error

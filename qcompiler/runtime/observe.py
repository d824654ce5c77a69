"""The concrete type and shape of every value of the main graph, by the runtime itself.

With the input shapes of a feed, ONNX Runtime's own shape inference and constant folding answer
nearly all; the rest is found by running, so that no model defeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.edit import fresh_name, remove_dead
from qcompiler.ir.shape_inference import infer_shapes
from qcompiler.pipeline.contract import Feed
from qcompiler.runtime.session import open_session, run
from qcompiler.runtime.settings import SessionSettings

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["inferred_shapes", "observe", "weightless"]

Observed = dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]

# Basic folds shape arithmetic, which makes inference complete, and fuses nothing that has a use;
# weights used once are not worth repacking.
_PLAIN = SessionSettings("basic", {"session.disable_prepacking": "1"})
_WEIGHT, _LARGE = 1 << 20, 1 << 24  # bytes of a weight, and of all that are worth a copy
_TENSOR = re.compile(r"tensor\((?P<element>\w+)\)")
_NAMES = {
    "float": ir.DataType.FLOAT,
    "double": ir.DataType.DOUBLE,
    **{dtype.name.lower(): dtype for dtype in ir.DataType},
}


def observe(model: ir.Model, feed: Feed) -> Observed:
    """Note what each value is when the model is fed ``feed``.

    A session with the feed's input shapes tells the types and most shapes without running. What
    it leaves open is read by ``Shape`` nodes in one run of the part of the model that they need,
    so that no tensor outlives its last reader: memory is that of an ordinary run at most.

    Args:
        model: Left as it is.
        feed: Array by input name.

    Returns:
        dtype and shape by value name: inputs, initializers, and outputs of the main graph's
        nodes. Values that are no tensors (sequences, maps, absent optionals) are missing.

    Raises:
        QcError: QC607, the runtime cannot load or run the model on the feed.
    """
    found = _constants(model)
    found.update((name, (array.dtype, array.shape)) for name, array in feed.items())
    model, feed = weightless(model, feed)
    open_: dict[str, np.dtype[np.generic]] = {}
    for name, dtype, inferred in _infer(model, feed):
        if inferred is None:
            open_[name] = dtype
        else:
            found[name] = (dtype, inferred)
    if open_:
        tapped, taps = _tapped(model, feed, list(open_))
        shapes = run(_open(tapped), feed, taps)
        for (name, dtype), tap in zip(open_.items(), taps, strict=True):
            found[name] = (dtype, tuple(int(size) for size in shapes[tap]))
    return found


def weightless(model: ir.Model, feed: Feed) -> tuple[ir.Model, Feed]:
    """The model without its large weights, if it has many: they become inputs, fed with zeros.

    A session copies weights. No shape hangs on large ones, and zeros that nobody writes take no
    memory.
    """
    weights = {
        name: tensor
        for name, value in model.graph.initializers.items()
        if (tensor := value.const_value) is not None
        and tensor.nbytes >= _WEIGHT
        and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        and not value.is_graph_output()
    }
    if sum(tensor.nbytes for tensor in weights.values()) < _LARGE:
        return model, feed
    copy, zeros = model.clone(), {}
    for name, tensor in weights.items():
        value = copy.graph.initializers.pop(name)
        value.const_value = None
        if name not in feed:
            copy.graph.inputs.append(value)
        zeros[name] = np.zeros(tensor.shape.numpy(), tensor.dtype.numpy())
    return copy, {**zeros, **feed}


def inferred_shapes(model: ir.Model, feed: Feed) -> Observed:
    """What shape inference alone tells when the model is fed ``feed``; nothing runs.

    For models that the runtime cannot run. Values behind an unknown operator are missing.
    """
    found = _constants(model)
    found.update((name, (array.dtype, array.shape)) for name, array in feed.items())
    shaped = _shaped(model, feed)
    infer_shapes(shaped)
    for node in shaped.graph:
        for value in node.outputs:
            known = value.shape is not None and all(isinstance(d, int) for d in value.shape)
            if value.name and value.dtype is not None and known:
                assert value.shape is not None
                found[value.name] = (value.dtype.numpy(), tuple(value.shape.numpy()))
    return found


def _constants(model: ir.Model) -> Observed:
    found: Observed = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            shape = tuple(int(size) for size in value.const_value.shape.numpy())
            found[name] = (value.const_value.dtype.numpy(), shape)
    return found


def _infer(
    model: ir.Model, feed: Feed
) -> Iterator[tuple[str, np.dtype[np.generic], tuple[int, ...] | None]]:
    """Name, type and shape of each tensor; None where inference does not know the shape."""
    asked = _shaped(model, feed)
    present = {value.name for value in asked.graph.outputs}
    asked.graph.outputs.extend(
        output
        for node in asked.graph
        for output in node.outputs
        if _may_tap(output) and output.name not in present
    )
    made = {output.name for node in asked.graph for output in node.outputs}
    for output in _open(asked).get_outputs():
        tensor = _TENSOR.fullmatch(output.type)
        if tensor is None or output.name not in made:
            continue
        # the runtime says [] for a scalar and for an unknown rank
        known = bool(output.shape) and all(isinstance(size, int) for size in output.shape)
        yield output.name, _NAMES[tensor["element"]].numpy(), tuple(output.shape) if known else None


def _may_tap(value: ir.Value) -> bool:
    return bool(value.name) and (value.type is None or isinstance(value.type, ir.TensorType))


def _shaped(model: ir.Model, feed: Feed) -> ir.Model:
    """A copy of the model with the feed's input shapes, and no other claims about shapes."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.name is not None and value.name in feed:
            value.shape = ir.Shape(feed[value.name].shape)
    for node in copy.graph:
        for output in node.outputs:
            output.shape = None
    return copy


def _tapped(model: ir.Model, feed: Feed, names: Sequence[str]) -> tuple[ir.Model, list[str]]:
    """A copy of the model that gives the shapes of the named values, in order, and nothing else."""
    copy = _shaped(model, feed)
    values = {output.name: output for node in copy.graph for output in node.outputs}
    copy.graph.outputs.clear()
    taps = []
    for name in names:
        node = ir.node("Shape", [values[name]], name=fresh_name(copy.graph, f"{name}/shape-tap"))
        tap = node.outputs[0]
        tap.name = fresh_name(copy.graph, f"{name}/shape")
        tap.type, tap.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
        copy.graph.append(node)
        copy.graph.outputs.append(tap)
        taps.append(tap.name)
    remove_dead(copy)
    return copy, taps


def _open(model: ir.Model) -> ort.InferenceSession:
    try:
        return open_session(model, settings=_PLAIN)
    except QcError as error:
        found = error.diagnostic
        raise QcError(Code.FLOAT_MODEL_FAILS, found.where, found.message, found.hint) from error

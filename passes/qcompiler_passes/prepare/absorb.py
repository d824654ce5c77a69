"""Where factors per channel can go: which constants to divide so that a value comes out divided.

A :class:`Fold` is found first and applied later, so that nothing is edited for a value that in the
end cannot be divided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.edit import add_initializer, constant, has_one_use
from qcompiler.ir.lazy import multiplied, view_of
from qcompiler.targets.cost import Shapes, shape_of

__all__ = ["Edit", "Fold", "RefusedError", "absorb", "apply_edits"]

Index = npt.NDArray[np.intp]
Wide = npt.NDArray[np.float64]

_FAR = 100  # nodes between what absorbs factors and what reads them
# max(0, x / s) = max(0, x) / s for s > 0
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu"})
_SAME_CHANNELS = frozenset({"Identity", "Dropout"})


class RefusedError(Exception):
    """A value cannot be divided; the message says what stands in the way."""


@dataclasses.dataclass(frozen=True, slots=True)
class Edit:
    """Divide, or multiply, a constant along its last axis.

    Attributes:
        node: A reader of the constant.
        index: Which input it is.
        channels: For each place of the last axis the number of its factor; -1 stays as it is.
        inverse: Multiply instead.
        rows: The factors go along the rows (axis 0) of a matrix instead.
    """

    node: ir.Node
    index: int
    channels: Index
    inverse: bool = False
    rows: bool = False

    def factors(self, s: Wide) -> Wide:
        """What to multiply with, ``[channels]``."""
        found = np.where(self.channels >= 0, s[np.maximum(self.channels, 0)], 1.0)
        return found if self.inverse else np.asarray(1.0 / found)


@dataclasses.dataclass
class Fold:
    """How a value comes out divided.

    Attributes:
        edits: Constants to change.
        path: Other values that come out divided too, with the numbers of their factors.
        ties: Channels that must have one factor carry one number; None when all are free.
        into: The node whose constants change, for the report.
        shapes: Concrete shapes of the values.
    """

    edits: list[Edit] = dataclasses.field(default_factory=list)
    path: list[tuple[ir.Value, Index]] = dataclasses.field(default_factory=list)
    ties: Index | None = None
    into: ir.Node | None = None
    shapes: Shapes = dataclasses.field(default_factory=dict)

    def divide(self, node: ir.Node, index: int, channels: Index) -> None:
        """Note a constant to divide."""
        self.edits.append(Edit(node, index, channels))
        self.into = self.into or node


def absorb(value: ir.Value, channels: int, shapes: Shapes) -> Fold:
    """How ``value`` ``[..., channels]`` can come out divided, whoever reads it.

    Raises:
        RefusedError: Nothing before it can take the factors exactly.
    """
    fold = Fold(shapes=shapes)
    _trace(value, np.arange(channels), fold, through=())
    return fold


def apply_edits(graph: ir.Graph, edits: Iterable[Edit], s: Wide) -> bool:
    """Change the constants, or none when one would overflow its type; say whether.

    A vector that somebody else reads too is copied; matrices are private, see :func:`absorb`. What
    is read from a file at each access is multiplied at each access.
    """
    changes: list[tuple[Edit, ir.TensorProtocol]] = []
    matrices: set[ir.Value] = set()
    for edit in edits:
        value = edit.node.inputs[edit.index]
        array = constant(value)
        assert value is not None
        assert array is not None
        if edit.rows:
            if value in matrices:  # layers of one group share it
                continue
            matrices.add(value)
        factors = edit.factors(s)
        factors = factors[:, None] if edit.rows else factors
        with np.errstate(over="ignore"):
            changed = (array * factors).astype(array.dtype)
        if not np.isfinite(changed).all():
            return False
        view = view_of(value.const_value)
        if view is not None and changed.shape == view.shape:
            changes.append((edit, multiplied(view, factors, value.name or "")))
        else:
            changes.append((edit, ir.tensor(changed, name=value.name)))
    for edit, tensor in changes:
        value = edit.node.inputs[edit.index]
        assert value is not None
        private = edit.rows or len(value.uses()) == 1
        if private and value.is_initializer() and not value.is_graph_output():
            value.const_value = tensor
            value.shape = ir.Shape(tensor.shape.numpy())
        else:
            copy = add_initializer(graph, f"{value.name}/smoothed", tensor)
            tensor.name = copy.name
            readers = [use.node for use in value.uses()] if edit.rows else [edit.node]
            for node in readers:
                node.replace_input_with(edit.index, copy)
    return True


def vector(node: ir.Node, index: int, channels: int) -> bool:
    """Whether the input is a float constant that factors along the last axis can change."""
    array = constant(node.inputs[index]) if index < len(node.inputs) else None
    return (
        array is not None
        and array.dtype.kind == "f"
        and array.shape[-1:] in ((), (1,), (channels,))
    )


def _trace(value: ir.Value, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    """Collect edits that divide ``value``; ``through`` are the nodes behind it already passed."""
    node = value.producer()
    if node is None:
        raise RefusedError(f"%{value.name} is an input")
    if through:
        if not has_one_use(value):
            raise RefusedError(f"%{value.name} has other readers")
        fold.path.append((value, channels))
    if node.domain not in ("", "ai.onnx"):
        raise RefusedError(f"{node.domain}:{node.op_type} takes no factors")
    behind = (*through, node)
    if len(behind) > _FAR:
        raise RefusedError(f"more than {_FAR} nodes stand between")
    if node.op_type in _SAME_CHANNELS or node.op_type in _HOMOGENEOUS:
        _trace(_input(node, 0), channels, fold, behind)
    elif node.op_type == "Split":
        _split(value, node, channels, fold, behind)
    elif node.op_type in _TRACES:
        _TRACES[node.op_type](node, channels, fold, behind)
    else:
        raise RefusedError(f"{node.op_type} takes no factors")


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise RefusedError(f"{node.op_type} lacks input {index}")
    return value


def _normalization(node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    rank = _rank(node.outputs[0], fold)
    axis = node.attributes.get_int("axis", -1)
    if axis != -1 and (rank is None or axis != rank - 1):
        raise RefusedError(f"{node.op_type} normalizes over more than the last axis")
    parameters = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
    for index in parameters:
        if not vector(node, index, len(channels)):
            raise RefusedError(f"{node.op_type} has no constant gain")
        fold.divide(node, index, channels)
    if 1 not in parameters:
        raise RefusedError(f"{node.op_type} has no constant gain")


def _batch_norm(node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    training = node.attributes.get("training_mode")
    if _rank(_input(node, 0), fold) != 2 or (training is not None and training.as_int()):
        raise RefusedError("BatchNormalization counts channels along axis 1")
    for index in (1, 2):
        if not vector(node, index, len(channels)):
            raise RefusedError("BatchNormalization has no constant gain")
        fold.divide(node, index, channels)


def _matmul(node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    value = _input(node, 1)
    array = constant(value)
    if array is None or array.ndim != 2 or array.shape[1] != len(channels):
        raise RefusedError("the product before is not with a constant matrix")
    if len(value.uses()) > 1 or value.is_graph_output():
        raise RefusedError(f"%{value.name} is shared with another node")
    fold.divide(node, 1, channels)


def _add(node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    for index in (1, 0):
        if vector(node, index, len(channels)):
            _trace(_input(node, 1 - index), channels, fold, through)
            fold.divide(node, index, channels)
            return
    raise RefusedError("an Add of two activations takes no factors")


def _mul(node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    for index in (1, 0):
        if vector(node, index, len(channels)):
            fold.divide(node, index, channels)
            return
    why = []
    for index in (1, 0):  # gated layers: silu(gate) * up, and up is linear
        other = _input(node, 1 - index)
        trial = Fold(shapes=fold.shapes)
        try:
            shape = shape_of(_input(node, index), fold.shapes)
            if shape is None or shape[-1:] != (len(channels),):
                raise RefusedError("a factor of Mul is broadcast")
            _trace(_input(node, index), channels, trial, through)
        except RefusedError as refused:
            why.append(f"%{other.name}: {refused}")
            continue
        fold.edits += trial.edits
        fold.path += trial.path
        fold.into = fold.into or trial.into
        _tie(fold, trial.ties)
        return
    raise RefusedError("neither factor of Mul takes factors: " + "; ".join(why))


def _rank(value: ir.Value, fold: Fold) -> int | None:
    shape = shape_of(value, fold.shapes)
    return None if shape is None else len(shape)


def _split(
    value: ir.Value, node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]
) -> None:
    """The part that ``value`` is takes the factors; the other parts stay as they are."""
    x = _input(node, 0)
    rank = _rank(x, fold)
    axis = node.attributes.get_int("axis", 0)
    if axis != -1 and (rank is None or axis != rank - 1):
        raise RefusedError("Split is not along the channels")
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if sizes is None:
        raise RefusedError("Split has no constant sizes")
    part = node.outputs.index(value)
    wide = np.full(int(sizes.sum()), -1, np.intp)
    start = int(sizes[:part].sum())
    wide[start : start + len(channels)] = channels
    _trace(x, wide, fold, through)


def _attention(node: ir.Node, channels: Index, fold: Fold, through: Sequence[ir.Node]) -> None:
    """What attends is a weighted mean of the rows of V, head by head: V's channels come through."""
    queries = node.attributes.get_int("q_num_heads", 0)
    heads = node.attributes.get_int("kv_num_heads", 0)
    caches = [value for value in node.inputs[4:6] if value is not None]
    extra = any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
    if not queries or not heads or queries % heads or len(channels) % queries:
        raise RefusedError("Attention does not take its heads as channels")
    if caches or extra:
        raise RefusedError("Attention keeps its values in a cache")
    depth = len(channels) // queries
    head = np.arange(queries) // (queries // heads)
    source = (head[:, None] * depth + np.arange(depth)).reshape(-1)  # output channel -> V's
    inner = np.full(heads * depth, -1, np.intp)
    inner[source] = channels
    if queries != heads:
        if (channels < 0).any():
            raise RefusedError("a part of the heads is split off")
        ties = np.arange(int(channels.max()) + 1)
        ties[channels] = source
        _tie(fold, ties)
    _trace(_input(node, 2), inner, fold, through)


def _tie(fold: Fold, ties: Index | None) -> None:
    if ties is None:
        return
    if fold.ties is not None:
        raise RefusedError("channels are tied twice")
    fold.ties = ties


_TRACES = {
    "LayerNormalization": _normalization,
    "RMSNormalization": _normalization,
    "BatchNormalization": _batch_norm,
    "MatMul": _matmul,
    "Add": _add,
    "Mul": _mul,
    "Attention": _attention,
}

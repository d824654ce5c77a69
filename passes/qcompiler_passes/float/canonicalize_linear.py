"""One form for linear layers: MatMul with a ``[in, out]`` weight, then Add of a ``[out]`` bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.edit import Tape, add_initializer, constant, remove_dead, replace
from qcompiler.ir.lazy import Stored, View, lazy_tensor, view_of
from qcompiler.ir.provenance import module_of
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.recipe import Recipe
from qcompiler_passes.decide.wishes import rule_on

__all__ = ["CanonicalizeLinear"]

Array = npt.NDArray[Any]

_BYTE = 8  # bits


@dataclasses.dataclass(frozen=True)
class CanonicalizeLinear(Pass):
    """Gemm with a constant weight becomes MatMul and Add; the bias stands on the right.

    - ``transB``, ``alpha`` and ``beta`` go into the constants; one transposed constant serves all
      its users.
    - ``MatMul(x, Transpose(w))`` with constant ``w`` (which fold-constants leaves alone when ``w``
      has other users) is treated as ``transB``.
    - A weight ``[1, in, out]`` and a bias ``[1, 1, out]`` lose their leading ones where the other
      operand has the rank.
    - A weight above ``small_bytes`` that another kind of node reads as it is (an embedding table
      tied to the output layer) is not copied: the node stays, with QC117. Where the others are
      Gathers of rows, and the recipe stores weights in 8 bits or a rule gives the node bits, a view
      takes the place of a copy: each can be quantized, both together are smaller than one float
      table, and ``share-transposed`` files once what stays in float after all.

    Given:  ``%y = Gemm(%x, %w, %b) transB=1`` with ``%w: float[out, in]``
    Result: ``%m = MatMul(%x, %w.T);  %y = Add(%m, %b)``

    Attributes:
        small_bytes: Shared weights up to this size are copied.
    """

    name: ClassVar[str] = "canonicalize-linear"
    phase: ClassVar[Phase] = Phase.FLOAT

    small_bytes: int = 65536

    def run(self, model: ir.Model, state: State) -> PassResult:
        """The main graph only: linear layers inside bodies stay in float anyway."""
        modified = False
        while True:
            work = _Work(model.graph, self.small_bytes, state.recipe)
            for node in list(model.graph):
                if node.domain == "" and node.op_type in _STEPS and node.graph is not None:
                    _STEPS[node.op_type](work, node)
            if not work.modified:
                return PassResult(modified, tuple(work.diagnostics))
            modified = True
            remove_dead(model)  # constants that only the old forms read


class _Work:
    """One run: transposed constants made so far, and what there is to tell."""

    def __init__(self, graph: ir.Graph, small_bytes: int, recipe: Recipe) -> None:
        self.graph = graph
        self.small_bytes = small_bytes
        self.recipe = recipe
        self.modified = False
        self.diagnostics: list[Diagnostic] = []
        self._made: dict[Hashable, ir.Value] = {}

    def weight(self, value: ir.Value, transposed: bool, alpha: float) -> ir.Value:
        """The weight as ``[in, out]`` times alpha; made once for all users."""
        if not transposed and alpha == 1.0:
            return value
        key = (value, transposed, alpha)
        if key not in self._made and self.would_copy(value):
            self._made[key] = _transposed_view(self.graph, value)
        if key not in self._made:
            array = constant(value)
            assert array is not None, "asked for constants only"
            self._made[key] = add_initializer(
                self.graph,
                f"{value.name}/transposed" if transposed else f"{value.name}/scaled",
                _scaled(np.ascontiguousarray(array.T) if transposed else array, alpha),
            )
        return self._made[key]

    def would_copy(self, value: ir.Value) -> bool:
        """Whether a user of ``value`` that wants it as it is would keep a second copy alive."""
        array = constant(value)
        if array is None or array.nbytes <= self.small_bytes:
            return False
        return value.is_graph_output() or not all(
            _wants_transposed(user, index) for user, index in value.uses()
        )

    def may_view(self, node: ir.Node, value: ir.Value, transposed: bool, alpha: float) -> bool:
        """Whether a transposed view can stand for a copy: the rest gathers rows of a table."""
        rule = rule_on(node, self.recipe.rules)
        # an output layer in fewer bits costs more than any other layer: only who asks gets it
        in_bytes = bool(self.recipe.schemes) and self.recipe.weights.bits == _BYTE
        if not in_bytes and (rule is None or rule.bits is None):
            return False
        if not transposed or alpha != 1.0 or value.is_graph_output():
            return False
        return value.dtype is ir.DataType.FLOAT and all(
            _wants_transposed(user, index) or (_gathers_rows(user) and index == 0)
            for user, index in value.uses()
        )

    def keep(self, node: ir.Node, weight: ir.Value) -> None:
        """Tell that a node stays as it is for the sake of a shared weight."""
        others = sorted({user.name or "" for user, _ in weight.uses() if user is not node})
        array = constant(weight)
        size = 0 if array is None else array.nbytes
        module = module_of(node)
        self.diagnostics.append(
            Diagnostic(
                Code.SHARED_WEIGHT,
                f"{module} ({node.name})" if module else node.name or "",
                f"weight {weight.name!r} of {size} bytes is read untransposed by "
                f"{', '.join(others[:3])}; a transposed copy would double it",
                "untie the weights, or store both in few bits by a rule: bits = 8, scheme 'weight'",
                {"weight": weight.name, "bytes": size},
            )
        )


def _gathers_rows(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return node.op_type == "Gather" and (axis is None or axis.as_int() == 0)


def _transposed_view(graph: ir.Graph, table: ir.Value) -> ir.Value:
    """A constant that is a table transposed, and holds no numbers of its own."""
    tensor, name = table.const_value, table.name or ""
    assert tensor is not None, "asked for constants only"
    view = view_of(tensor)
    if view is None:
        view = View(Stored(name, tuple(tensor.shape.numpy()), tensor.numpy))
        table.const_value = lazy_tensor(view, name)
    other = dataclasses.replace(view, transposed=not view.transposed)
    return add_initializer(graph, f"{name}/transposed", lazy_tensor(other, f"{name}/transposed"))


def _scaled(array: Array, factor: float) -> Array:
    return array if factor == 1.0 else (array * factor).astype(array.dtype)


def _wants_transposed(user: ir.Node, index: int) -> bool:
    """Whether the user reads the weight transposed, or through a Transpose for a MatMul."""
    if user.op_type == "Gemm":
        return index == 1 and _float(user, "transB", 0) != 0
    if user.op_type != "Transpose":
        return False
    reads = user.outputs[0].uses()
    return all(reader.op_type == "MatMul" and place == 1 for reader, place in reads)


def _float(node: ir.Node, name: str, default: float) -> float:
    attr = node.attributes.get(name)
    return default if attr is None else float(attr.value)


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()


def _gemm(work: _Work, node: ir.Node) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    array = constant(weight)
    if x is None or weight is None or array is None or _float(node, "transA", 0):
        return
    transposed = bool(_float(node, "transB", 0))
    alpha, beta = _float(node, "alpha", 1.0), _float(node, "beta", 1.0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    values = constant(bias)
    if bias is not None and values is None and beta not in (0.0, 1.0):
        return
    other = transposed or alpha != 1.0
    if other and work.would_copy(weight) and not work.may_view(node, weight, transposed, alpha):
        work.keep(node, weight)
        return
    out = array.shape[0 if transposed else 1]
    tape = Tape(work.graph, node.name or "Gemm")
    y = tape.op("MatMul", x, work.weight(weight, transposed, alpha))
    if bias is not None and beta != 0.0:
        y = tape.op("Add", y, bias if values is None else _bias(work, bias, values, out, beta))
    replace(work.graph, [node], tape.nodes, {node.outputs[0]: y})
    work.modified = True


def _bias(work: _Work, bias: ir.Value, values: Array, out: int, beta: float) -> ir.Value:
    """The bias as ``[out]``; a bias with rows of its own stays a matrix."""
    if values.shape == (out,) and beta == 1.0:
        return bias
    flat = values
    if values.size == 1:
        flat = np.broadcast_to(values.reshape(1), (out,))
    elif values.shape == (1, out):
        flat = values.reshape(out)
    return add_initializer(work.graph, f"{bias.name}/flat", _scaled(np.array(flat), beta))


def _matmul(work: _Work, node: ir.Node) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    producer = None if weight is None else weight.producer()
    if producer is not None and producer.op_type == "Transpose" and not producer.domain:
        _untranspose(work, node, producer)
        return
    array = constant(weight)
    rank = _rank(x)
    if weight is None or array is None or rank is None or not 2 < array.ndim <= rank:
        return
    if any(dim != 1 for dim in array.shape[:-2]) or len(weight.uses()) > 1:
        return
    flat = add_initializer(work.graph, f"{weight.name}/flat", array.reshape(array.shape[-2:]))
    node.replace_input_with(1, flat)
    work.modified = True


def _untranspose(work: _Work, node: ir.Node, transpose: ir.Node) -> None:
    weight = transpose.inputs[0]
    array = constant(weight)
    perm = transpose.attributes.get("perm")
    if weight is None or array is None or array.ndim != 2:
        return
    if perm is not None and list(perm.as_ints()) != [1, 0]:
        return
    if work.would_copy(weight) and not work.may_view(node, weight, True, 1.0):
        work.keep(node, weight)
        return
    tape = Tape(work.graph, node.name or "MatMul")
    y = tape.op("MatMul", node.inputs[0], work.weight(weight, transposed=True, alpha=1.0))
    replace(work.graph, [transpose, node], tape.nodes, {node.outputs[0]: y})
    work.modified = True


def _add(work: _Work, node: ir.Node) -> None:
    """``Add(bias, MatMul)`` turned around, and the bias flattened."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return
    if constant(left) is not None and _is_linear(right):
        left, right = right, left
        node.replace_input_with(0, left)
        node.replace_input_with(1, right)
        work.modified = True
    values, rank = constant(right), _rank(left)
    if values is None or rank is None or not _is_linear(left) or not 1 < values.ndim <= rank:
        return
    if values.size != values.shape[-1]:
        return
    flat = add_initializer(work.graph, f"{right.name}/flat", values.reshape(-1))
    node.replace_input_with(1, flat)
    work.modified = True


def _is_linear(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or producer.op_type != "MatMul" or producer.domain:
        return False
    return constant(producer.inputs[1]) is not None


_STEPS = {"Gemm": _gemm, "MatMul": _matmul, "Add": _add}

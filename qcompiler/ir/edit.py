"""Change a graph safely: fresh names, kept output names, provenance, nothing dangling.

Rewrites build nodes on a :class:`Tape` and hand them to :func:`replace`; both keep the names of
graph outputs, which are the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import all_graphs, body_graphs

__all__ = [
    "Tape",
    "add_initializer",
    "collect_names",
    "constant",
    "fresh_name",
    "has_one_use",
    "import_domain",
    "is_constant",
    "name_everything",
    "remove_dead",
    "replace",
    "unique",
]

_NAMES = "qcompiler.names"  # Graph.meta: names in use, built lazily


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initializer or Constant output, else None. Graph inputs are no constants."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain not in ("", "ai.onnx"):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether :func:`constant` has an array for it, without making that array."""
    if value is None or value.is_graph_input():
        return False
    if value.const_value is not None:
        return True
    producer = value.producer()
    return (
        producer is not None
        and producer.op_type == "Constant"
        and producer.domain in ("", "ai.onnx")
    )


def fresh_name(graph: ir.Graph, hint: str) -> str:
    """A name no node or value of the graph (or of a nested body) has: ``hint`` or ``hint_1`` ..."""
    names: set[str] | None = graph.meta.get(_NAMES)
    if names is None:
        names = _names_in(graph)
        graph.meta[_NAMES] = names
    return unique(hint, names)


def collect_names(model: ir.Model) -> None:
    """Let all graphs of the model share one set of the names in use, read anew.

    The pass runner calls it after each pass that edits, since code that does not go through this
    module (``onnx_ir`` passes, the version converter) may have been at work.
    """
    names = _names_in(model.graph)
    for graph in all_graphs(model):
        graph.meta[_NAMES] = names


def add_initializer(
    graph: ir.Graph, hint: str, array: npt.NDArray[Any] | ir.TensorProtocol
) -> ir.Value:
    """Register a constant under a fresh name made from ``hint``; sub-byte types as ir tensors."""
    name = fresh_name(graph, hint)
    tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape([int(dim) for dim in tensor.shape]),  # type: ignore[arg-type]
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


class Tape:
    """Records new nodes in order; :func:`replace` puts them into the graph.

    ``tape.op("Add", x, y)`` returns the output value; ``outputs=2`` returns a list. Arrays among
    the inputs become initializers.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        """Record nodes for ``graph``; names start with ``prefix``."""
        self.graph = graph
        self.prefix = prefix
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | npt.NDArray[Any] | None,
        domain: str = "",
        outputs: int = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Append one node and return its output value (a list when ``outputs`` > 1)."""
        values = [
            add_initializer(self.graph, f"{self.prefix}/const", item)
            if isinstance(item, np.ndarray)
            else item
            for item in inputs
        ]
        node_name = fresh_name(self.graph, name or f"{self.prefix}/{op_type}")
        node = ir.node(
            op_type,
            values,
            {key: value for key, value in attributes.items() if value is not None},
            domain=domain,
            num_outputs=outputs,
            name=node_name,
        )
        for index, output in enumerate(node.outputs):
            suffix = f".{index}" if outputs > 1 else ""
            output.name = fresh_name(self.graph, f"{node_name}.out{suffix}")
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)


def replace(
    graph: ir.Graph,
    old: Sequence[ir.Node],
    new: Sequence[ir.Node],
    values: Mapping[ir.Value, ir.Value],
) -> None:
    """Put ``new`` where the last of ``old`` stands, redirect ``values``, remove ``old``.

    New nodes inherit the provenance of all of ``old``. Where an old value is a graph output its
    name moves to the new value. Old shapes and types move where the new value has none. An old
    node that something outside still reads is left in place.

    Args:
        graph: Graph that holds ``old``.
        old: Nodes to remove, in graph order; at least one.
        new: Nodes to insert, in order; may be empty when ``values`` maps to existing values.
        values: Old output value -> value that takes its place.
    """
    anchor = old[-1]
    graph.insert_before(anchor, new)
    if new:
        inherit(new, old)
    for before, after in values.items():
        _take_type(before, after)
        _redirect(graph, before, after)
    for node in reversed(old):
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        graph.remove(node, safe=True)


def has_one_use(value: ir.Value) -> bool:
    """Whether exactly one input of one node reads the value, and it is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def remove_dead(model: ir.Model) -> bool:
    """Remove nodes and initializers nobody reads, in every graph; say whether there were any."""
    changed = False
    for graph in reversed(list(all_graphs(model))):
        for node in reversed(list(graph)):
            if any(output.uses() or output.is_graph_output() for output in node.outputs):
                continue
            for body in body_graphs(node):
                _empty(body)
            graph.remove(node, safe=True)
            changed = True
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
                changed = True
    return changed


def _empty(body: ir.Graph) -> None:
    """Take the nodes out of a body that goes, so that they no longer read what is outside."""
    body.outputs.clear()
    for node in reversed(list(body)):
        for inner in body_graphs(node):
            _empty(inner)
        body.remove(node, safe=True)


def import_domain(model: ir.Model, domain: str) -> None:
    """Make sure the model imports ``domain``, in version 1 where it does not yet."""
    model.graph.opset_imports.setdefault(domain, 1)


def name_everything(model: ir.Model) -> None:
    """Give every node and value a name that is unique in the model; the user's names stay."""
    seen_nodes: set[str] = set()
    seen_values: set[str] = set()
    for graph in all_graphs(model):
        seen_values.update(value.name for value in graph.inputs if value.name)
        seen_values.update(graph.initializers)
    for graph in all_graphs(model):
        for index, node in enumerate(graph):
            node.name = unique(node.name or f"{node.op_type}_{index}", seen_nodes)
            for output in node.outputs:
                if output.name != "" or output.uses():
                    output.name = unique(output.name or f"{node.name}.out", seen_values)
    collect_names(model)


def unique(hint: str, seen: set[str]) -> str:
    """``hint``, or ``hint_1`` ... where that is ``seen``; added to them."""
    name, count = hint, 0
    while name in seen:
        count += 1
        name = f"{hint}_{count}"
    seen.add(name)
    return name


def _names_in(graph: ir.Graph) -> set[str]:
    names = {value.name for value in graph.inputs if value.name} | set(graph.initializers)
    for node in graph:
        names.update(output.name for output in node.outputs if output.name)
        if node.name:
            names.add(node.name)
        for body in body_graphs(node):
            names |= _names_in(body)
    return names


def _take_type(before: ir.Value, after: ir.Value) -> None:
    if after.shape is None:
        after.shape = before.shape
    if after.type is None:
        after.type = before.type


def _redirect(graph: ir.Graph, before: ir.Value, after: ir.Value) -> None:
    if not before.is_graph_output():
        before.replace_all_uses_with(after)
        return
    taken = after.is_graph_output() or after.is_graph_input() or after.is_initializer()
    if taken or after.producer() is None:
        # the name is the user's and so is the other value's: an Identity carries both
        producer = before.producer()
        assert producer is not None, "a graph output without a producer cannot be redirected"
        identity = ir.node("Identity", [after], name=fresh_name(graph, f"{before.name}/Identity"))
        graph.insert_after(producer, identity)
        inherit([identity], [producer])
        after = identity.outputs[0]
        _take_type(before, after)
    name = before.name
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    before.name = fresh_name(graph, f"{name}/replaced")
    after.name = name

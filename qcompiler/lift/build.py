"""Build the lifted form: a list of nodes becomes a ``torch.fx.GraphModule``.

It is an execution form, never a second IR: built, used, committed back, thrown away.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import onnx_ir as ir
from torch import fx, nn

from qcompiler.diagnostics import Code, QcError
from qcompiler.ir.walk import op_name
from qcompiler.lift.lifted import Lifted
from qcompiler.lift.operands import numpy_to_torch
from qcompiler.lift.operators import Signature, find, signature_of

__all__ = ["block_inputs", "block_outputs", "lift", "liftable", "refusals"]

_INLINE = 64  # constant elements that may stand as a list in the graph's code


def lift(
    nodes: Sequence[ir.Node] | ir.Graph,
    *,
    inputs: Sequence[ir.Value] | None = None,
    outputs: Sequence[ir.Value] | None = None,
    trainable: Collection[ir.Value] = (),
) -> Lifted:
    """Make a differentiable torch module that computes what the nodes compute.

    Each constant becomes one buffer, or one parameter when trainable, however many nodes read it.

    Args:
        nodes: A block in graph order, or the whole main graph.
        inputs: Values the module takes, in order. Default: what the nodes read and do not produce,
            by first use; the graph's inputs for a graph. A value that one of the nodes produces
            may be named: what only leads up to it is left out.
        outputs: Values the module returns, as a tuple. Default: what others read of the nodes'
            results; the graph's outputs for a graph.
        trainable: Float initializers to make parameters of.

    Raises:
        QcError: QC302, an operator, attribute value or output that the table does not cover.
        ValueError: ``outputs`` depend on a value that is neither constant, nor computed by
            ``nodes``, nor among ``inputs``; or a trainable value is not such an initializer.
    """
    if isinstance(nodes, ir.Graph):
        inputs = list(nodes.inputs) if inputs is None else inputs
        outputs = list(nodes.outputs) if outputs is None else outputs
        nodes = list(nodes)
    inputs = block_inputs(nodes) if inputs is None else inputs
    outputs = block_outputs(nodes) if outputs is None else outputs
    needed = _needed(nodes, inputs, outputs)
    builder = _Builder(inputs, set(trainable))
    for node in nodes:
        if node in needed and node.op_type != "Constant":
            builder.add(node)
    return builder.finish(outputs)


def refusals(nodes: Iterable[ir.Node]) -> dict[ir.Node, QcError]:
    """The nodes that have no lifted form, each with its refusal (QC302)."""
    found = {}
    for node in nodes:
        try:
            if node.op_type != "Constant":
                _Builder([value for value in node.inputs if value is not None], set()).add(node)
        except QcError as error:
            found[node] = error
    return found


def liftable(graph: ir.Graph) -> tuple[list[ir.Node], dict[ir.Node, QcError]]:
    """The nodes of a graph that :func:`lift` takes, and why it does not take the others.

    Returns:
        The nodes that neither are refused nor stand behind one that is, in graph order; and of all
        others, the refusal (QC302) of themselves or of a node that they stand behind.
    """
    own, left = refusals(graph), dict[ir.Node, QcError]()
    for node in graph:
        producers = (value.producer() for value in node.inputs if value is not None)
        before = next((left[item] for item in producers if item in left), None)
        refusal = before or own.get(node)
        if refusal is not None:
            left[node] = refusal
    return [node for node in graph if node not in left], left


def block_inputs(nodes: Sequence[ir.Node]) -> tuple[ir.Value, ...]:
    """Values that the nodes read and neither produce nor know as constants, by first use."""
    produced = {value for node in nodes for value in node.outputs}
    read = (value for node in nodes for value in node.inputs if value is not None)
    found = (value for value in read if value not in produced and _tensor(value) is None)
    return tuple(dict.fromkeys(found))


def block_outputs(nodes: Sequence[ir.Node]) -> tuple[ir.Value, ...]:
    """Results of the nodes that other nodes read or that are graph outputs, in graph order."""
    inside = set(nodes)
    return tuple(
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in inside for use in value.uses())
    )


def _needed(
    nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> set[ir.Node]:
    inside, given = set(nodes), set(inputs)
    needed: set[ir.Node] = set()
    missing: dict[ir.Value, None] = {}
    stack = list(outputs)
    while stack:
        value = stack.pop()
        producer = value.producer()
        if value in given or _tensor(value) is not None or producer in needed:
            continue
        if producer is None or producer not in inside:
            missing[value] = None
            continue
        needed.add(producer)
        stack.extend(item for item in producer.inputs if item is not None)
    if missing:
        names = ", ".join(f"%{value.name}" for value in missing)
        raise ValueError(f"the block depends on {names}, which is not among its inputs")
    return needed


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The constant a value stands for: an initializer, or what a Constant node holds."""
    if value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or op_name(producer) != "Constant":
        return None
    return ir.convenience.get_const_tensor(value)


class _Builder:
    """Collects constants and calls, then makes the module."""

    def __init__(self, inputs: Sequence[ir.Value], trainable: set[ir.Value]) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.inputs = tuple(inputs)
        self.trainable = trainable
        self.params: dict[ir.Value, nn.Parameter] = {}
        self.values: dict[ir.Value, fx.Node] = {}
        self.calls: dict[ir.Node, fx.Node] = {}
        self.last: fx.Node | None = None  # the last input or constant
        for value in self.inputs:
            self.last = self.graph.placeholder(_identifier(value.name or "input"))
            self.values[value] = self.last

    def add(self, node: ir.Node) -> None:
        """Append the call of one node."""
        function, signature = _resolve(node)
        arguments = [
            self._operand(value, _kind(signature, index)) for index, value in enumerate(node.inputs)
        ]
        keywords = {name: self._attribute(node, name) for name in node.attributes}
        count = len(node.outputs)
        if "outputs" in signature.names:
            keywords["outputs"] = count
        _check(node, signature, keywords)
        call = self.graph.create_node(
            "call_function", function, tuple(arguments), keywords, _identifier(_call_name(node))
        )
        self.calls[node] = call
        if not _gives_tuple(signature, count):
            self.values[node.outputs[0]] = call
            return
        for index, output in enumerate(node.outputs):
            if output.uses() or output.is_graph_output():
                self.values[output] = self.graph.call_function(operator.getitem, (call, index))

    def finish(self, outputs: Sequence[ir.Value]) -> Lifted:
        """The module, compiled."""
        unknown = self.trainable - set(self.params)
        if unknown:
            names = ", ".join(sorted(str(value.name) for value in unknown))
            raise ValueError(f"trainable values that are no float constants: {names}")
        self.graph.output(tuple(self._operand(value, "tensor") for value in outputs))
        module = fx.GraphModule(self.root, self.graph, class_name="Lifted")
        return Lifted(module, self.params, self.inputs, tuple(outputs), self.values, self.calls)

    def _operand(self, value: ir.Value | None, kind: str) -> Any:
        if value is None:
            return None
        if value in self.values:
            return self.values[value]
        tensor = _tensor(value)
        assert tensor is not None, f"%{value.name} is used before it is produced"
        if kind != "tensor" and tensor.size <= _INLINE:
            literal = tensor.numpy().reshape(-1).tolist()
            return literal if kind == "ints" else literal[0]
        self.values[value] = self._constant(value, tensor)
        return self.values[value]

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> fx.Node:
        name = self._free_name(value.name or "constant")
        data = numpy_to_torch(tensor)
        if value in self.trainable and value.is_initializer() and data.is_floating_point():
            self.params[value] = nn.Parameter(data)
            self.root.register_parameter(name, self.params[value])
        else:
            self.root.register_buffer(name, data)
        # constants stand before all calls, so that a fake quantizer on one serves every reader
        with self.graph.inserting_after(self.last):
            self.last = self.graph.get_attr(name)
        return self.last

    def _attribute(self, node: ir.Node, name: str) -> Any:
        attr = node.attributes[name]
        if not isinstance(attr, ir.Attr) or attr.type not in _PLAIN:
            if isinstance(attr, ir.Attr) and attr.type is ir.AttributeType.TENSOR:
                buffer = self._free_name(f"{node.name}.{name}")
                self.root.register_buffer(buffer, numpy_to_torch(attr.as_tensor()))
                return self.graph.get_attr(buffer)
            raise _refusal(node, f"its attribute {name!r} is not a number, a text or a tensor")
        return list(attr.value) if isinstance(attr.value, tuple | list) else attr.value

    def _free_name(self, hint: str) -> str:
        name, count = _identifier(hint), 0
        while hasattr(self.root, name):
            count += 1
            name = f"{_identifier(hint)}_{count}"
        return name


_PLAIN = frozenset(
    {
        ir.AttributeType.INT,
        ir.AttributeType.FLOAT,
        ir.AttributeType.STRING,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRINGS,
    }
)


def _resolve(node: ir.Node) -> tuple[Callable[..., Any], Signature]:
    domain = "" if node.domain == "ai.onnx" else node.domain
    opsets = node.graph.opset_imports if node.graph is not None else {}
    opset = opsets.get(domain, opsets.get("ai.onnx", 1) if domain == "" else 1)
    function = find(domain, node.op_type, opset)
    if function is None:
        raise _refusal(node, f"{op_name(node)} (opset {opset}) has no differentiable form")
    return function, signature_of(function)


def _check(node: ir.Node, signature: Signature, keywords: dict[str, Any]) -> None:
    """Refuse what the function does not cover."""
    unknown = sorted(set(keywords) - signature.names)
    if unknown:
        raise _refusal(node, f"attribute {unknown[0]!r} of {op_name(node)} is not covered")
    for name, allowed in signature.allowed.items():
        if name in keywords and keywords[name] not in allowed:
            shown = ", ".join(map(repr, allowed))
            raise _refusal(
                node, f"{name} = {keywords[name]!r} of {op_name(node)} is not covered, only {shown}"
            )
    if len(node.outputs) > 1 and "outputs" not in signature.names:
        raise _refusal(node, f"only the first output of {op_name(node)} is covered")
    if len(node.inputs) > len(signature.kinds) and not (signature.variadic or signature.opaque):
        raise _refusal(node, f"only {len(signature.kinds)} inputs of {op_name(node)} are covered")


def _refusal(node: ir.Node, message: str) -> QcError:
    return QcError(
        Code.NOT_LIFTABLE,
        node.name or "",
        message,
        "choose an algorithm that needs no gradients, or keep the block in float with a rule",
        op=op_name(node),
        node=node.name,
    )


def _kind(signature: Signature, index: int) -> str:
    return signature.kinds[index] if index < len(signature.kinds) else "tensor"


def _gives_tuple(signature: Signature, count: int) -> bool:
    # Split returns a tuple even of one part: its ``outputs`` is no Literal that could be 1
    return "outputs" in signature.names and (count > 1 or "outputs" not in signature.allowed)


def _call_name(node: ir.Node) -> str:
    return (node.outputs[0].name if node.outputs else None) or node.name or node.op_type


def _identifier(text: str) -> str:
    name = re.sub(r"\W+", "_", text).strip("_").lower()
    return f"n_{name}" if not name or name[0].isdigit() else name

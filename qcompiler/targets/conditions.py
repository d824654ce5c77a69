"""Predicates that rows of a target name: does this node meet them, and if not, why.

A predicate returns None when it holds, else the reason in a few words, with what was found and
what is wanted. For a :class:`~qcompiler.targets.schema.Trap`, "holds" means that it is armed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.ir.edit import is_constant
from qcompiler.numerics.nbits import nbits_layout
from qcompiler.schemes import QSpec
from qcompiler.targets.cost import Shapes, shape_of
from qcompiler.targets.schema import Form, Kernel, Target

__all__ = ["CONDITIONS", "Condition", "Context", "code_of", "first_failure"]


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What a predicate may look at besides the node.

    Attributes:
        shapes: Observed dtype and shape by value name.
        target: The target whose row is asked about.
        form: The output form.
        weight: Spec wanted for the weight, where the recipe and not the row decides it.
    """

    shapes: Shapes
    target: Target
    form: Form
    weight: QSpec | None = None


Condition = Callable[[ir.Node, Context], "str | None"]


def first_failure(row: Kernel, node: ir.Node, context: Context) -> tuple[str, str] | None:
    """Name and reason of the row's first condition that the node does not meet, or None."""
    for name in row.conditions:
        reason = CONDITIONS[name](node, context)
        if reason is not None:
            return name, reason
    return None


def code_of(condition: str) -> Code:
    """The diagnostic code of a failed condition."""
    return _CODES.get(condition, Code.CONDITION)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _constant_weight(node: ir.Node, context: Context) -> str | None:
    # only a constant is packed ahead of time; unpacked it is up to 100 times slower
    if is_constant(_input(node, 1)):
        return None
    return "the weight (input 1) is computed at run time, wanted a constant"


def _constant_table(node: ir.Node, context: Context) -> str | None:
    if is_constant(_input(node, 0)):
        return None
    return "the table (input 0) is computed at run time, wanted a constant"


def _constant_bias(node: ir.Node, context: Context) -> str | None:
    bias = _input(node, 2)
    if bias is None or is_constant(bias):
        return None
    return "the bias (input 2) is computed at run time, wanted a constant"


def _rank(index: int, what: str, low: int, high: int) -> Condition:
    wanted = f"{low}" if low == high else f"{low} to {high}"

    def check(node: ir.Node, context: Context) -> str | None:
        shape = shape_of(_input(node, index), context.shapes)
        if shape is None:
            return f"the shape of the {what} is unknown, wanted rank {wanted}"
        if low <= len(shape) <= high:
            return None
        return f"the {what} has rank {len(shape)}, wanted {wanted}"

    return check


def _activations(node: ir.Node, context: Context) -> str | None:
    for index, value in enumerate(node.inputs):
        if is_constant(value):
            return f"input {index} is a constant, wanted activations only"
    return None


def _same_shape(node: ir.Node, context: Context) -> str | None:
    shapes = [shape_of(value, context.shapes) for value in node.inputs]
    if None in shapes:
        return "the shape of an operand is unknown, wanted equal shapes"
    if len(set(shapes)) == 1:
        return None
    return f"operands have shapes {' and '.join(map(str, shapes))}, wanted equal ones"


def _static_batch(node: ir.Node, context: Context) -> str | None:
    value = _input(node, 0)
    if value is None or value.shape is None:
        return "the shape of input 0 is unknown, wanted a fixed batch"
    if len(value.shape) and isinstance(value.shape[0], int):
        return None
    return f"the batch is symbolic ({value.shape}), wanted a fixed one"


def _attribute(name: str, default: int, wanted: int) -> Condition:
    def check(node: ir.Node, context: Context) -> str | None:
        found = node.attributes.get_int(name, default)
        return None if found == wanted else f"{name} is {found}, wanted {wanted}"

    return check


def _gather_axis_0(node: ir.Node, context: Context) -> str | None:
    axis = node.attributes.get_int("axis", 0)
    return None if axis == 0 else f"axis is {axis}, wanted 0: rows of the table"


def _no_dilation(node: ir.Node, context: Context) -> str | None:
    dilations = node.attributes.get_ints("dilations", [1])
    if all(step == 1 for step in dilations):
        return None
    return f"dilations are {list(dilations)}, wanted 1"


def _one_output(node: ir.Node, context: Context) -> str | None:
    used = [output for output in node.outputs if output.uses() or output.is_graph_output()]
    return None if len(used) <= 1 else f"{len(used)} outputs are used, wanted 1"


def _nearest(node: ir.Node, context: Context) -> str | None:
    mode = node.attributes.get_string("mode", "nearest")
    return None if mode == "nearest" else f"mode is {mode!r}, wanted 'nearest'"


def _nbits_group_size(node: ir.Node, context: Context) -> str | None:
    size = context.weight.group_size if context.weight is not None else None
    if size is None:
        return None
    # MatMulNBits enforces it: https://github.com/microsoft/onnxruntime, matmul_nbits.cc
    if size not in (16, 32, 64, 128, 256):
        return f"group size {size}, wanted 16, 32, 64, 128 or 256"
    shape = shape_of(_input(node, 1), context.shapes)
    if context.form is Form.QDQ and shape is not None and shape[0] % size:
        return f"in-features {shape[0]} is not a multiple of group size {size}"
    return None


def _nbits_layout(node: ir.Node, context: Context) -> str | None:
    weight = context.weight
    if weight is None:
        return None
    layout = nbits_layout(weight)
    if isinstance(layout, str) or context.form is Form.ORT:
        return layout if isinstance(layout, str) else None
    # written as DequantizeLinear the runtime's own fusion has to find it
    special = weight.codebook or weight.scales or weight.float_zero
    plain = weight.width in (2, 4, 8) and not special
    if not plain or weight.width != weight.dtype.bitwidth:
        return f"{weight} is no pattern that the runtime fuses, wanted 2, 4 or 8 bits"
    return _nbits_group_size(node, context)


def _table_blocks(node: ir.Node, context: Context) -> str | None:
    weight, shape = context.weight, shape_of(_input(node, 0), context.shapes)
    if weight is None or shape is None:
        return None
    layout = nbits_layout(weight)
    if isinstance(layout, str):
        return layout
    whole = layout.is_native and layout.blocks_per_scale == 1 and weight.scales is None
    whole = whole and not weight.float_zero
    if not whole or weight.is_signed:
        return f"{weight}, wanted blocks of 2, 4 or 8 bits with float scales"
    ids = _input(node, 1)
    if ids is None or ids.shape is None:
        return "the rank of the indices is unknown"
    if shape[-1] % layout.block_size:
        return f"rows of {shape[-1]} are no multiple of group size {layout.block_size}"
    return None


def _not_nbits(node: ir.Node, context: Context) -> str | None:
    if _nbits_layout(node, context) is not None:
        return None
    return "MatMulNBits takes the weight"


def _functions(node: ir.Node, context: Context) -> str | None:
    graph = node.graph
    opset = graph.opset_imports.get("", 0) if isinstance(graph, ir.Graph) else 0
    weight = context.weight
    if weight is None or opset >= 18:
        return None
    layout = nbits_layout(weight)
    if not isinstance(layout, str) and layout.is_native and weight.scales is None:
        return None
    return f"opset {opset}, wanted 18 for the operators that unpack"


def _group_divides(node: ir.Node, context: Context) -> str | None:
    size = context.weight.group_size if context.weight is not None else None
    shape = shape_of(_input(node, 1), context.shapes)
    if size is None or shape is None or shape[0] % size == 0:
        return None
    return f"in-features {shape[0]} is not a multiple of group size {size}"


def _form(form: Form) -> Condition:
    def check(node: ir.Node, context: Context) -> str | None:
        return None if context.form is form else f"the form is {context.form.value}"

    return check


_NORMALIZATIONS = frozenset(
    {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax"}
)


def _followed_by_bias(node: ir.Node, context: Context) -> str | None:
    consumers = node.outputs[0].consumers()
    for consumer in consumers:
        if consumer.op_type == "Add" and any(map(is_constant, consumer.inputs)):
            return None
    return "no constant is added to the output"


def _no_bias_behind(node: ir.Node, context: Context) -> str | None:
    if _followed_by_bias(node, context) is None:
        return "a bias is added to the output, which this kernel cannot take in"
    return None


def _no_normalization_behind(node: ir.Node, context: Context) -> str | None:
    # The residual stream of a transformer holds a few channels of huge values and its scores the
    # mask's huge negative ones, which a normalization takes out again: one scale for all of them
    # drowns the rest (with quantized Adds MiniLM's outputs keep a cosine of 0.4 to float).
    sums, met = [node], {node}  # many paths may lead to one sum
    while sums:
        for consumer in sums.pop().outputs[0].consumers():
            if consumer.op_type in _NORMALIZATIONS:
                return f"its sum is normalized by {consumer.op_type}: one scale would drown it"
            if consumer.op_type == "Add" and consumer not in met:
                met.add(consumer)
                sums.append(consumer)
    return None


def _no_mask_in_front(node: ir.Node, context: Context) -> str | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is not None and producer.op_type in ("Add", "Where"):
        return "an attention mask is added in front: its huge negatives would take up the range"
    return None


def _bias_in_qdq(node: ir.Node, context: Context) -> str | None:
    return _form(Form.QDQ)(node, context) or _followed_by_bias(node, context)


def _weight_axis(axis: int) -> Condition:
    def check(node: ir.Node, context: Context) -> str | None:
        found = context.weight.axis if context.weight is not None else None
        return None if found == axis else f"the weight's scales are along axis {found}"

    return check


def _vnni(node: ir.Node, context: Context) -> str | None:
    has = any("vnni" in flag or "amx" in flag for flag in context.target.isa)
    return None if has else "the target has neither VNNI nor AMX"


def _always(node: ir.Node, context: Context) -> str | None:
    return None


CONDITIONS: Mapping[str, Condition] = {
    "activation-rank-2-3": _rank(0, "activation", 2, 3),
    "activation-rank-4": _rank(0, "activation", 4, 4),
    "activations-only": _activations,
    "always": _always,
    "bias-in-qdq": _bias_in_qdq,
    "constant-bias": _constant_bias,
    "constant-table": _constant_table,
    "constant-weight": _constant_weight,
    "conv-rank": _rank(1, "weight", 3, 5),
    "floor-mode": _attribute("ceil_mode", 0, 0),
    "followed-by-bias": _followed_by_bias,
    "form-ort": _form(Form.ORT),
    "form-qdq": _form(Form.QDQ),
    "gather-axis-0": _gather_axis_0,
    "group-divides-in-features": _group_divides,
    "nbits-group-size": _nbits_group_size,
    "nbits-layout": _nbits_layout,
    "no-nbits-layout": _not_nbits,
    "unpacking-opset": _functions,
    "no-bias-behind": _no_bias_behind,
    "no-dilation": _no_dilation,
    "no-mask-in-front": _no_mask_in_front,
    "no-normalization-behind": _no_normalization_behind,
    "not-grouped": _attribute("group", 1, 1),
    "one-output": _one_output,
    "resize-nearest": _nearest,
    "same-shape": _same_shape,
    "static-batch": _static_batch,
    "table-blocks": _table_blocks,
    "table-rank-2": _rank(0, "table", 2, 2),
    "vnni": _vnni,
    "weight-axis-0": _weight_axis(0),
    "weight-axis-1": _weight_axis(1),
    "weight-rank-2": _rank(1, "weight", 2, 2),
}

_CODES: Mapping[str, Code] = {
    "constant-bias": Code.NOT_CONSTANT,
    "constant-table": Code.NOT_CONSTANT,
    "constant-weight": Code.NOT_CONSTANT,
    "nbits-group-size": Code.GROUP_SIZE,
    "nbits-layout": Code.GROUP_SIZE,
    "table-blocks": Code.GROUP_SIZE,
    "group-divides-in-features": Code.GROUP_SIZE,
    "static-batch": Code.UNKNOWN_SHAPE,
}

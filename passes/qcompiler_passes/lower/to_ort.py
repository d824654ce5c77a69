"""Lower the QDQ dialect to the operators that ONNX Runtime's CPU provider runs fastest."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.ir.edit import (
    Tape,
    add_initializer,
    constant,
    import_domain,
    is_constant,
    remove_dead,
    replace,
)
from qcompiler.ir.walk import all_nodes
from qcompiler.numerics.affine import quantize
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.settings import SessionSettings
from qcompiler.targets.schema import Form
from qcompiler_passes.apply.gather_blocks import share_tables
from qcompiler_passes.apply.weight_functions import DOMAIN, define_functions
from qcompiler_passes.lower.ort_kernels import LOWERINGS
from qcompiler_passes.lower.qdq_sites import (
    Operand,
    Site,
    clamp_integers,
    operand_of,
    refuse,
    same_parameters,
)
from qcompiler_passes.planned import CARRIER, KERNEL

__all__ = ["FINAL_SETTINGS", "LAYOUT_SETTINGS", "UNPACKING_SETTINGS", "ToOrt"]

_FLOAT_KERNEL = 4  # bits for which the runtime has a fast kernel with float activations

# The graph holds final operators: no rewrite of the runtime makes it faster, some make it slower or
# wrong.
FINAL_SETTINGS = SessionSettings(level="disable")

# Convolutions need the runtime's layouts (NCHWc for float, NHWC for QLinearConv), which come with
# level "all". What is left of Q and DQ stands where the plan put it: no QDQ rule may use it.
LAYOUT_SETTINGS = SessionSettings(
    level="all",
    entries={
        "session.disable_quant_qdq": "1",
        "optimization.disable_specified_optimizers": "SkipLayerNormFusion;BiasGeluFusion",
    },
)

# Weights that are filed in another form than the kernels', or than the one reader of two that a
# tied table has, are brought into it when the model is loaded, by constant folding; of the other
# rewrites none may touch what is final.
UNPACKING_SETTINGS = SessionSettings(
    level="basic",
    entries={
        "optimization.disable_specified_optimizers": "MatMulAddFusion;WeightBiasQuantization",
    },
)


@dataclasses.dataclass(frozen=True)
class ToOrt(Pass):
    """Replace DQ, operator and Q by one integer operator; carriers run on the integers.

    Given, ``%y`` being stamped with kernel ``matmul-static``::

        %xd = DequantizeLinear(%xq, %xs, %xz)
        %wd = DequantizeLinear(%wq, %ws, %wz) axis=1
        %y = MatMul(%xd, %wd)
        %z = Add(%y, %bias)

    Result, under the name of the MatMul::

        %z = com.microsoft:MatMulIntegerToFloat(%xq, %wq, %xs, %ws, %xz, _, %bias)

    Works on form ``ort`` only.
    """

    name: ClassVar[str] = "to-ort"
    phase: ClassVar[Phase] = Phase.LOWER
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Lower every stamped node of the main graph and choose the session options."""
        if state.form is not Form.ORT:
            return PassResult(modified=False)
        graph = model.graph
        changed = False
        for node in list(graph):
            if KERNEL in node.metadata_props:
                changed |= _lower(graph, node)
            elif CARRIER in node.metadata_props:
                changed |= _carry(graph, node)
        if state.recipe.weights.accuracy_level != 4:
            _set_arithmetic(graph, state.recipe.weights.accuracy_level)
        share_tables(graph)
        changed |= _drop_round_trips(graph)
        if changed:
            remove_dead(model)
        if any(node.domain == "com.microsoft" for node in graph):
            import_domain(model, "com.microsoft")
        define_functions(model)
        state.session = _settings(model)
        return PassResult(modified=changed)


def _set_arithmetic(graph: ir.Graph, level: int) -> None:
    """Let products of 4 bits compute as asked; of other bits the kernels have one fast way."""
    for node in graph:
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == _FLOAT_KERNEL:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


def _settings(model: ir.Model) -> SessionSettings:
    # a weight that came quantized and that no kernel takes is folded to floats when it is loaded
    convolves = any(node.op_type in _CONVOLUTIONS for node in all_nodes(model))
    if not convolves and any(map(_is_unpacked, model.graph)):
        return UNPACKING_SETTINGS
    return LAYOUT_SETTINGS if convolves or any(map(_is_left, model.graph)) else FINAL_SETTINGS


def _is_unpacked(node: ir.Node) -> bool:
    """Whether the node makes constants, or reads what nodes make of constants."""
    if node.op_type == "MatMulNBits":  # never right on constants that are not folded
        return any(value is not None and value.producer() is not None for value in node.inputs[1:4])
    turns = node.op_type in ("Cast", "Transpose") and is_constant(node.inputs[0])
    return node.domain == DOMAIN or turns


def _is_left(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and constant(node.inputs[0]) is not None


_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvTranspose"})


def _lower(graph: ir.Graph, node: ir.Node) -> bool:
    site = Site.of(node)
    if site.kernel not in LOWERINGS:
        raise refuse(node, f"there is no lowering of kernel {site.kernel!r}")
    tape = Tape(graph, node.name or "")
    inputs = tuple(node.inputs)
    lowered = LOWERINGS[site.kernel](site, tape)
    if not lowered.old:
        return tuple(node.inputs) != inputs
    name = node.name
    lowered.main.metadata_props[KERNEL] = site.kernel
    replace(graph, lowered.old, tape.nodes, {lowered.old[-1].outputs[0]: lowered.result})
    if node.graph is None:
        lowered.main.name = name
    return True


def _carry(graph: ir.Graph, node: ir.Node) -> bool:
    """Let a carrier read the integers and write what its Q would have made of its floats."""
    operands = {
        index: found
        for index, value in enumerate(node.inputs)
        if (found := operand_of(value)) is not None
    }
    if not operands:
        return False
    stored = [_quantize_behind(output) for output in node.outputs]
    if node.op_type in ("Relu", "Clip"):
        _carry_clamp(graph, node, operands[0], stored[0])
        return True
    if node.op_type == "Pad":
        _pad_with_integers(graph, node, stored[0])
    for index, operand in operands.items():
        node.replace_input_with(index, operand.q)
    integers = next(iter(operands.values())).q
    for output, quantize_node in zip(node.outputs, stored, strict=True):
        if quantize_node is not None:
            _take_place(output, quantize_node)
        elif integers.dtype is not None:  # nobody reads it, and its type must be right all the same
            output.type = ir.TensorType(integers.dtype)
    return True


def _take_place(output: ir.Value, quantize_node: ir.Node) -> None:
    q = quantize_node.outputs[0]
    assert q.dtype is not None
    output.type = ir.TensorType(q.dtype)
    q.replace_all_uses_with(output)


def _carry_clamp(graph: ir.Graph, node: ir.Node, x: Operand, stored: ir.Node | None) -> None:
    if stored is None:
        raise refuse(node, "its result is not quantized")
    low, high = clamp_integers(node, stored)
    zero_point = constant(stored.inputs[2])
    assert zero_point is not None
    tape = Tape(graph, node.name or "")
    bounds = (np.asarray(bound, zero_point.dtype) for bound in (low, high))
    result = tape.op("Clip", x.q, *bounds)
    replace(graph, [node, stored], tape.nodes, {stored.outputs[0]: result})
    tape.nodes[-1].name = node.name


def _pad_with_integers(graph: ir.Graph, node: ir.Node, stored: ir.Node | None) -> None:
    """Pad with the integer that stands for the float it was padded with (0 when not given)."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return
    given = node.inputs[2] if len(node.inputs) > 2 else None
    fill = constant(given)
    if stored is None or (given is not None and fill is None):
        raise refuse(node, "the padding value is not constant")
    scale, zero_point = constant(stored.inputs[1]), constant(stored.inputs[2])
    assert scale is not None
    assert zero_point is not None
    limits = np.iinfo(zero_point.dtype)
    fill = np.zeros((), np.float32) if fill is None else np.asarray(fill, np.float32).reshape(())
    q = quantize(fill, scale, zero_point.astype(np.int32), int(limits.min), int(limits.max))
    value = add_initializer(graph, f"{node.name}/fill", np.asarray(q).astype(zero_point.dtype))
    while len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)


def _quantize_behind(output: ir.Value) -> ir.Node | None:
    for use in output.uses():
        if use.node.op_type == "QuantizeLinear":
            return use.node
    return None


def _drop_round_trips(graph: ir.Graph) -> bool:
    """Remove a DQ followed by a Q with the same parameters."""
    changed = False
    for node in list(graph):
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        producer = node.inputs[0].producer()
        if producer is None or producer.op_type != "DequantizeLinear":
            continue
        if same_parameters(node, producer) and not producer.attributes:
            assert producer.inputs[0] is not None
            node.outputs[0].replace_all_uses_with(producer.inputs[0])
            changed = True
    return changed

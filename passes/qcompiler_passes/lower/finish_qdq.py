"""Finish the QDQ form: exactly the patterns that the named runtime fuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError
from qcompiler.ir.edit import Tape, add_initializer, constant, has_one_use, remove_dead
from qcompiler.ir.provenance import inherit
from qcompiler.ir.walk import op_name
from qcompiler.pipeline.contract import Pass, PassResult, Phase, State
from qcompiler.runtime.settings import SessionSettings
from qcompiler.schemes import QSpec
from qcompiler.targets.schema import Form
from qcompiler_passes.apply.qdq_writer import QdqWriter
from qcompiler_passes.lower.qdq_sites import Operand, Site, operand_of
from qcompiler_passes.lower.shield_bodies import shield_bodies
from qcompiler_passes.planned import KERNEL, SPEC, bias_operand

__all__ = ["FinishQdq"]

# What onnxruntime 1.31.1 would otherwise do to a mixed-precision QDQ graph: round the weights of
# float nodes between quantized neighbours (WeightBiasQuantization), use slower kernels for float
# nodes (SkipLayerNormalization, BiasGelu), and give MatMulNBits its slow default arithmetic.
_DISABLED = ("SkipLayerNormFusion", "BiasGeluFusion", "WeightBiasQuantization")
_ENTRIES = {"session.qdq_matmulnbits_accuracy_level": "4"}

# MatMul + Add becomes Gemm, and with three dequantized operands QGemm, for these ranks of x.
_GEMM_RANKS = (2, 3)

# Kernels that onnxruntime does not find behind a Gemm.
_NO_GEMM = ("matmul-dynamic", "matmul-weight")

_BLOCKS_SINCE = 21  # opset of DequantizeLinear's block_size and of 4-bit types
_TWO_BITS_SINCE = 25
_FLOAT8_SINCE = 19
_FLOAT8 = {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2}

# onnxruntime 1.31.1 takes any 8 bits for integers: it fuses Q and DQ of 8-bit floats into operators
# that refuse them, and drops a Relu or Clip in front of a Q whose zero point is 0
_OPTIMIZERS = "optimization.disable_specified_optimizers"
_INTEGER_REWRITES = ("ReluQuantRewrite", "ClipQuantRewrite")
_UNFUSED = {"session.disable_quant_qdq": "1"}

# On x86 onnxruntime makes u8 of s8 activations; 1.31.1 forgets the output_dtype of a Q that it put
# behind a Reshape before, and then refuses the model. On ARM s8 stays s8 by itself.
_SIGNED = {"session.qdqisint8allowed": "1"}


@dataclasses.dataclass(frozen=True)
class FinishQdq(Pass):
    """Store the bias behind a static MatMul as int32, in steps of ``x_scale * w_scale``.

    ONNX Runtime turns MatMul and the Add behind it into one Gemm, which it runs on integers only
    when the bias is dequantized too; with a float bias the node stays float and its weight is
    dequantized on every run. A node quantized at run time, or in its weights only, must not become
    a Gemm at all, and neither may one to which other floats than a bias are added: where there is
    one, that fusion is switched off and biases stay float. A Relu or
    Clip between the node and floats becomes Max and Min, or nothing would be fused, and each reader
    of a weight in few bits gets a copy. Other runtimes take the dialect as it is. Works on form
    ``qdq`` only.

    Given::

        %y = MatMul(%xd, %wd)
        %z = Add(%y, %b)

    Result::

        %y = MatMul(%xd, %wd)
        %bd = DequantizeLinear(%b/q, %b/scale) axis=0
        %z = Add(%y, %bd)
    """

    name: ClassVar[str] = "finish-qdq"
    phase: ClassVar[Phase] = Phase.LOWER
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Edit the graph and choose the session options."""
        if state.form is not Form.QDQ:
            return PassResult(modified=False)
        diagnostics = list(_check_opset(model))
        changed = shield_bodies(model.graph)
        options = _type_options(model)
        if options:
            state.session = SessionSettings(level="all", entries=options)
        if state.target.runtime != "onnxruntime":
            return PassResult(modified=changed, diagnostics=tuple(diagnostics))
        kernels = {node.name: node.metadata_props.get(KERNEL, "") for node in model.graph}
        no_gemm = any(
            kernels[node.name] in _NO_GEMM
            or (kernels[node.name] == "matmul-static" and _has_float_sum(node))
            for node in model.graph
        )
        disabled = (*_DISABLED, "MatMulAddFusion") if no_gemm else _DISABLED
        disabled = (*disabled, *filter(None, options.get(_OPTIMIZERS, "").split(";")))
        entries = {**_ENTRIES, **options, _OPTIMIZERS: ";".join(disabled)}
        state.session = SessionSettings(level="all", entries=entries)
        writer = QdqWriter(model.graph, state)
        for node in list(model.graph):
            if kernels.get(node.name) not in (*_NO_GEMM, "matmul-static"):
                continue
            site, last = Site.of(node), node
            if kernels[node.name] == "matmul-weight":
                copied = _own_constants(site.operand(1))
                if copied:
                    changed = True
                    diagnostics.append(_told_copy(node, copied))
            if not no_gemm:
                changed |= _round_bias(site, writer)
                last = (node, *site.absorbed)[-1]
            changed |= _spell_out(last.outputs[0], site.operand(1).scale.dtype)
        if changed:
            remove_dead(model)
        return PassResult(modified=changed, diagnostics=tuple(diagnostics))


def _own_constants(weight: Operand) -> int:
    """Copy the integers and scales that other nodes read as well; the bytes that takes.

    onnxruntime 1.31.1 makes a MatMulNBits of constants that nobody else reads; zero points may be
    shared. A copy takes an eighth of the float weight, in 4 bits.
    """
    reader, copied = weight.dequantize, 0
    for index in (0, 1):
        value = reader.inputs[index]
        tensor = value.const_value if value is not None else None
        if value is None or tensor is None or has_one_use(value):
            continue
        assert reader.graph is not None, "it stands in a graph"
        shape = ir.Shape(tensor.shape.numpy())
        copy = ir.LazyTensor(lambda tensor=tensor: tensor, tensor.dtype, shape)  # type: ignore[misc]
        own = add_initializer(reader.graph, f"{value.name}/copy", copy)
        copy.name = own.name
        reader.replace_input_with(index, own)
        copied += tensor.nbytes
    return copied


def _told_copy(node: ir.Node, copied: int) -> Diagnostic:
    return Diagnostic(
        Code.SHARED_WEIGHT,
        node.name or "",
        f"its weight has other readers and was copied for it, {copied} bytes: onnxruntime makes no "
        "product of few bits of constants that are shared",
        "form 'ort' needs no copy",
        {"bytes": copied},
    )


def _has_float_sum(node: ir.Node) -> bool:
    """Whether onnxruntime would make a Gemm of the node that has a float operand."""
    result = node.outputs[0]
    add = next(iter(result.uses())).node if has_one_use(result) else None
    if add is None or op_name(add) != "Add" or Site.of(node).absorbed:
        return False
    other = next((value for value in add.inputs if value is not result), None)
    ranks = [None if of is None or of.shape is None else len(of.shape) for of in (result, other)]
    # of a result with more axes only a vector becomes the operand of a Gemm
    return ranks[0] in (2, None) or ranks[1] in (1, None)


def _type_options(model: ir.Model) -> dict[str, str]:
    """What a session of onnxruntime needs for other activations than u8.

    Of 8-bit floats and 16 bits it has no kernels and only shows the numbers. With 16-bit
    activations onnxruntime 1.32 takes a layer for one with quantized weights alone, and rounds its
    activations to 8 bits.
    """
    words = {node.metadata_props.get(SPEC) for node in model.graph}
    made = {_made_by(node) for node in model.graph}
    if made & _FLOAT8 or any(QSpec.parse(word).is_float8 for word in words if word is not None):
        return {**_UNFUSED, _OPTIMIZERS: ";".join(_INTEGER_REWRITES)}
    if made & {ir.DataType.INT16, ir.DataType.UINT16}:
        return _UNFUSED
    return _SIGNED if ir.DataType.INT8 in made else {}


def _made_by(node: ir.Node) -> ir.DataType | None:
    """The type that a QuantizeLinear gives; None of any other node."""
    if node.op_type != "QuantizeLinear":
        return None
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    said = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(said) if zero_point is None else zero_point.dtype


def _check_opset(model: ir.Model) -> Iterator[Diagnostic]:
    """Refuse types and blocks that the opset lacks; tell of 2-bit weights that take a byte each."""
    opset = model.graph.opset_imports.get("", 0)
    wide = []
    for node in model.graph:
        spec = node.metadata_props.get(SPEC)
        if spec is None:
            continue
        parsed = QSpec.parse(spec)
        bits, needs = parsed.dtype.bitwidth, _FLOAT8_SINCE if parsed.is_float8 else 0
        if bits < 8 or "block_size" in node.attributes:
            needs = _BLOCKS_SINCE
        if opset < needs:
            raise QcError(
                Code.NO_LOWERING,
                node.name or "",
                f"weight {spec} needs opset {needs}, the model has {opset}",
                "raise the opset, or use 8-bit weights per channel",
            )
        if bits == 2 and opset < _TWO_BITS_SINCE:
            wide.append(node.name or "")
    if wide:
        yield Diagnostic(
            Code.OPSET_KEPT,
            wide[0],
            f"{len(wide)} 2-bit weights take a byte per element: opset {opset} has no 2-bit types",
            f"opset {_TWO_BITS_SINCE} has, and form 'ort' packs them at any opset",
            {"count": len(wide), "opset": opset},
        )


def _spell_out(value: ir.Value, dtype: ir.DataType | None) -> bool:
    """Make Max and Min of a Relu or Clip that alone reads ``value``, a result of type ``dtype``.

    onnxruntime 1.31.1 looks for a Q behind a MatMul through a Relu or Clip that a Q makes
    redundant; where there is none it does not fuse the MatMul at all, and the weight is
    dequantized in every run.
    """
    behind = next(iter(value.uses())).node if has_one_use(value) else None
    if behind is None or behind.graph is None or dtype is None or behind.attributes:
        return False
    if op_name(behind) not in ("Relu", "Clip"):
        return False
    if _is_redundant(behind):
        return False
    if op_name(behind) == "Relu":
        zero = np.zeros((), dtype.numpy())
        bounds = {"Max": add_initializer(behind.graph, f"{behind.name}/zero", zero)}
    else:
        given = zip(("Max", "Min"), behind.inputs[1:], strict=False)
        bounds = {op: bound for op, bound in given if bound is not None}
        if not bounds:
            return False
    *before, (behind.op_type, bound) = bounds.items()
    tape = Tape(behind.graph, str(behind.name))
    for op, other in before:
        value = tape.op(op, value, other)
    behind.graph.insert_before(behind, tape.nodes)
    inherit(tape.nodes, [behind])
    behind.resize_inputs(2)
    behind.replace_input_with(0, value)
    behind.replace_input_with(1, bound)
    return True


def _is_redundant(node: ir.Node) -> bool:
    """Whether only Q's read the Relu or Clip, and each of them saturates within its bounds."""
    readers = [use.node for use in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or {item.op_type for item in readers} != {
        "QuantizeLinear"
    }:
        return False
    bounds = [constant(value) for value in node.inputs[1:]]
    if any(value is not None and constant(value) is None for value in node.inputs[1:]):
        return False
    low, high = [*bounds, None, None][:2] if op_name(node) == "Clip" else (np.float32(0), None)
    for reader in readers:
        scale, zero = (constant(value) for value in reader.inputs[1:3])
        if scale is None or zero is None or zero.size != 1 or zero.dtype.kind not in "iu":
            return False
        limits, zero_point = np.iinfo(zero.dtype), int(zero.reshape(()))
        if low is not None and low > (limits.min - zero_point) * scale:
            return False
        if high is not None and high < (limits.max - zero_point) * scale:
            return False
    return True


def _round_bias(site: Site, writer: QdqWriter) -> bool:
    node = site.node
    rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else None
    if not site.absorbed or (rank is not None and rank not in _GEMM_RANKS):
        return False
    add = site.absorbed[0]
    x, w = site.operand(0), site.operand(1)
    x_scale, w_scale = constant(x.scale), constant(w.scale)
    shape = w.q.shape
    channels = shape[-1] if shape is not None else None
    if x_scale is None or w_scale is None or not isinstance(channels, int):
        return False
    bias = bias_operand(add, node.outputs[0], channels)
    array = constant(bias)
    if bias is None or array is None or operand_of(bias) is not None:
        return False
    index = 1 if add.inputs[1] is bias else 0
    # numpy makes a scalar of a product of arrays without axes
    scale = np.asarray(np.float32(x_scale) * w_scale.astype(np.float32))
    add.replace_input_with(index, writer.int32_constant(add, index, array, scale))
    return True

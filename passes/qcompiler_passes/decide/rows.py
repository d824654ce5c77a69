"""Whether a kernel row fits a node, and if not, the most telling reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.ir.edit import is_constant
from qcompiler.ir.walk import op_name
from qcompiler.numerics.nbits import stored_bytes
from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.activations import activation_spec, activation_specs, weight_index
from qcompiler.targets.conditions import (
    CONDITIONS,
    Context,
    code_of,
    first_failure,
)
from qcompiler.targets.cost import Shapes, shape_of
from qcompiler.targets.schema import Form, Kernel, Scheme, Target
from qcompiler_passes.decide.coarse import coarse_channels, vanishes
from qcompiler_passes.decide.weight_specs import weight_only_spec
from qcompiler_passes.decide.wishes import Wish

__all__ = ["SPLIT_TABLE", "Refusal", "Rows", "is_float", "operand_specs", "reads_low", "telling"]

# A table below this is not worth a second Gather and a Mul: it is no part of the model's size.
_LARGE_TABLE = 1 << 20

_DEQUANTIZE = frozenset(
    {"DequantizeLinear", "com.microsoft:DequantizeLinear", "DynamicQuantizeLinear"}
)
# The first of these that some row gives is the one to tell: the others follow from it or say less.
_TELLING = (
    Code.ALREADY_QUANTIZED,
    Code.KEPT_BY_RULE,
    Code.WRONG_DTYPE,
    Code.UNKNOWN_SHAPE,
    Code.DATA_MOVEMENT,
    Code.NOT_CONSTANT,
    Code.SHARED_WEIGHT,
    Code.GROUP_SIZE,
    Code.TRAP,
    Code.CONDITION,
    Code.COARSE_WEIGHT,
    Code.DOES_NOT_PAY,
    Code.NO_CALIBRATION,
    Code.NOT_SELECTED,
    Code.NO_KERNEL,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row or a node is not used: the parts of a diagnostic that know no place.

    Attributes:
        code: Its code.
        message: What is so.
        hint: What to do.
    """

    code: Code
    message: str
    hint: str = ""


SPLIT_TABLE = Refusal(
    Code.SHARED_WEIGHT,
    "the table is also the weight of a product, which stays in float: a quantized one would be "
    "stored beside it",
)


def telling(refusals: Iterable[Refusal]) -> Refusal | None:
    """The refusal that says most; the first of equals."""
    return min(refusals, key=lambda refusal: _TELLING.index(refusal.code), default=None)


def is_float(value: ir.Value | None, shapes: Shapes) -> bool:
    """Whether the value holds floating-point numbers, as observed or as typed."""
    if value is None:
        return False
    if value.name is not None and value.name in shapes:
        dtype = shapes[value.name][0]
        return dtype.kind == "f" or dtype.name.startswith("bfloat")
    return value.dtype is not None and value.dtype.is_floating_point()


def _is_double(value: ir.Value, shapes: Shapes) -> bool:
    if value.name is not None and value.name in shapes:
        return shapes[value.name][0].name == "float64"
    return value.dtype is ir.DataType.DOUBLE


def operand_specs(row: Kernel, node: ir.Node, weight: QSpec | None) -> tuple[QSpec | None, ...]:
    """A spec or None for each input of the node.

    The row of a variadic operator (Concat) states one spec, which holds for all inputs. ``weight``
    takes the place of the spec of input 1 where the recipe or the target adapts it.
    """
    specs = list(row.inputs)
    if op_name(node) in ("Concat", "Max", "Min", "Sum", "Mean"):
        specs += [specs[-1]] * (len(node.inputs) - len(specs))
    specs = (specs + [None] * len(node.inputs))[: len(node.inputs)]
    index = weight_index(row)
    if weight is not None and index is not None:
        specs[index] = weight
    return tuple(spec if node.inputs[i] is not None else None for i, spec in enumerate(specs))


class Rows:
    """Fits the rows of a target to nodes."""

    def __init__(
        self,
        target: Target,
        form: Form,
        shapes: Shapes,
        *,
        embeddings: bool,
        activations: str = "auto",
        granularity: str = "auto",
    ) -> None:
        """Rows of ``target`` in ``form``.

        Args:
            target: Whose rows.
            form: The output form.
            shapes: What was observed.
            embeddings: Allow tables of few bits without a rule that asks for them.
            activations: Type of static activations, by its name in a recipe.
            granularity: Of weights, ``auto`` as the row has it.
        """
        self.target = target
        self.form = form
        self.shapes = shapes
        self.embeddings = embeddings
        self.granularity = granularity
        # One form of low precision per compile: the cut knows two sides.
        self.activation = activation_spec(target, form, activations)

    def of(self, node: ir.Node) -> list[Kernel]:
        """The rows of the node's operator, in any form."""
        name = op_name(node)
        return [row for row in self.target.kernels if row.op == name]

    def weight_spec(self, row: Kernel, wish: Wish) -> QSpec | None:
        """The spec of the row's constant operand, as target and recipe adapt it."""
        index = weight_index(row)
        spec = None if index is None or index >= len(row.inputs) else row.inputs[index]
        if spec is None:
            return None
        if row.scheme is Scheme.WEIGHT and spec.granularity is Granularity.BLOCK:
            return weight_only_spec(spec, wish)
        if row.scheme is Scheme.WEIGHT:
            return spec
        spec = self.target.weight_spec(spec)
        by_channel = spec.granularity is Granularity.CHANNEL
        if by_channel and self.granularity == "tensor":
            return dataclasses.replace(spec, granularity=Granularity.TENSOR, axis=None)
        return spec

    def refusal(self, row: Kernel, node: ir.Node, wish: Wish) -> Refusal | None:
        """Why the row cannot be used for the node, or None when it can."""
        weight = self.weight_spec(row, wish)
        context = Context(self.shapes, self.target, self.form, weight)
        return (
            self._unwanted(row, node, wish)
            or self._other_table(row, node, wish)
            or self._wrong_data(row, node)
            or self._failed_condition(row, node, context)
            or self._bad_weight(row, node, wish, weight)
            or self._trap(row, node, context)
        )

    def _unwanted(self, row: Kernel, node: ir.Node, wish: Wish) -> Refusal | None:
        if self.form not in row.forms:
            forms = " or ".join(form.value for form in row.forms)
            return Refusal(Code.NO_KERNEL, f"{row.id} exists in form {forms} only")
        if wish.tied and not wish.schemes:
            return SPLIT_TABLE
        if wish.kernel:
            if wish.kernel == row.id:
                return self._other_activation(row)
            return Refusal(Code.NOT_SELECTED, f"the recipe asks for {wish.kernel}")
        if len(row.inputs) > len(node.inputs):
            found = f"{row.id} takes {len(row.inputs)} inputs, the node has {len(node.inputs)}"
            return Refusal(Code.CONDITION, found)
        wanted = self.embeddings or wish.is_demand or wish.says_bits
        if row.op == "Gather" and not wanted:
            return Refusal(Code.NOT_SELECTED, "the recipe keeps tables in float (embeddings)")
        by_default = row.op == "Gather" and bool(wish.schemes)
        if row.scheme not in wish.schemes and not (by_default and not wish.is_demand):
            return Refusal(
                Code.NOT_SELECTED,
                f"{row.id} is of scheme {row.scheme.value}, which the recipe does not select",
            )
        if row.reference and not wish.force:
            return Refusal(
                Code.DOES_NOT_PAY,
                f"{row.id} is a numerical reference: the runtime computes it in float",
                "a recipe with force = true takes it",
            )
        return self._other_activation(row)

    def _other_activation(self, row: Kernel) -> Refusal | None:
        if row.scheme is not Scheme.STATIC:
            return None
        for spec in activation_specs(row):
            if spec != self.activation:
                return Refusal(
                    Code.CONDITION,
                    f"{row.id} takes {spec}, this compile uses {self.activation}",
                    "the recipe's key `activations` chooses",
                )
        return None

    def _wrong_data(self, row: Kernel, node: ir.Node) -> Refusal | None:
        if row.scheme is not Scheme.WEIGHT and all(map(is_constant, filter(None, node.inputs))):
            return Refusal(Code.CONDITION, "all its inputs are constants, wanted an activation")
        for index, spec in enumerate(operand_specs(row, node, None)):
            value = node.inputs[index]
            if value is None or (spec is None and index > 0):
                continue
            producer = value.producer()
            if producer is not None and op_name(producer) in _DEQUANTIZE:
                return Refusal(
                    Code.ALREADY_QUANTIZED, f"input {index} comes from {producer.op_type}"
                )
            shape = shape_of(value, self.shapes)
            if shape is not None and 0 in shape:
                return Refusal(
                    Code.CONDITION, f"input {index} has no elements, its shape is {shape}"
                )
            if row.scheme is Scheme.WEIGHT and _is_double(value, self.shapes):
                return Refusal(
                    Code.WRONG_DTYPE, f"input {index} is float64, {row.id} takes float32 or float16"
                )
            if spec is not None and not is_float(value, self.shapes):
                if value.name not in self.shapes and value.dtype is None:
                    return Refusal(Code.UNKNOWN_SHAPE, f"the type of input {index} is unknown")
                return Refusal(Code.WRONG_DTYPE, f"input {index} holds no floating-point numbers")
        return None

    def _failed_condition(self, row: Kernel, node: ir.Node, context: Context) -> Refusal | None:
        failed = first_failure(row, node, context)
        if failed is not None:
            return Refusal(code_of(failed[0]), f"{row.id}: {failed[1]}")
        return None

    def _bad_weight(
        self, row: Kernel, node: ir.Node, wish: Wish, weight: QSpec | None
    ) -> Refusal | None:
        index = weight_index(row)
        value = node.inputs[index] if index is not None else None
        if vanishes(value):
            assert value is not None, "None does not vanish"
            return Refusal(
                Code.CONDITION, f"%{value.name} holds only numbers below 1.5e-36: no scale fits"
            )
        if row.scheme is not Scheme.WEIGHT:
            one = weight is not None and weight.granularity is Granularity.TENSOR
            if one and self.granularity == "channel":
                return Refusal(Code.CONDITION, f"{row.id} takes one scale per weight ({weight})")
            return self._coarse(row, node, wish)
        assert weight is not None, "a weight-only row has a weight"
        special = weight.codebook or weight.scales or weight.float_zero
        plain = weight.width == weight.dtype.bitwidth and not special
        if not plain and self.target.runtime != "onnxruntime":
            return Refusal(
                Code.CONDITION,
                f"{row.id} takes whole integers of 2, 4 or 8 bits with float scales, not {weight}",
            )
        if weight.is_signed and weight.granularity is Granularity.BLOCK and not wish.symmetric:
            return Refusal(Code.CONDITION, f"{row.id} has symmetric blocks only")
        shape = shape_of(value, self.shapes)
        assert value is not None, "the conditions want a constant"
        if shape is None:
            return Refusal(Code.UNKNOWN_SHAPE, f"the shape of %{value.name} is unknown")
        if row.op == "Gather":
            return self._bad_table(value, shape, wish)
        stored = stored_bytes(weight, (shape[0], shape[1]))
        if stored >= math.prod(shape) * 4:
            return Refusal(
                Code.GROUP_SIZE,
                f"{shape[0]} in-features in groups of {weight.group_size} take {stored} bytes,"
                f" float takes {math.prod(shape) * 4}",
                "use a smaller group_size for this node",
            )
        others = [use.node for use in value.uses() if op_name(use.node) != row.op]
        if wish.force and not wish.is_demand and others:
            return _shared(value, others[0])
        return None

    def _coarse(self, row: Kernel, node: ir.Node, wish: Wish) -> Refusal | None:
        """One scale for channels that differ much, where float is a choice and nobody insists."""
        index = weight_index(row)
        spec = row.inputs[index] if index is not None else None
        wanted = wish.force or wish.is_demand or not self.target.costs
        if self.granularity != "tensor" or wanted or index is None or spec is None:
            return None
        found = coarse_channels(node.inputs[index], spec)
        if found is None:
            return None
        coarse, channels = found
        return Refusal(
            Code.COARSE_WEIGHT,
            f"one scale changes the weights of {coarse} of {channels} output channels by over 10 %",
            "a rule with scheme 'static' quantizes it nevertheless",
        )

    def _other_table(self, row: Kernel, node: ir.Node, wish: Wish) -> Refusal | None:
        """Of tables in blocks and tables by row, the one that is not wanted."""
        if row.op != "Gather":
            return None
        asked = wish.tied or wish.says_bits
        if row.inputs[0] is not None and row.inputs[0].granularity is Granularity.BLOCK:
            if asked or wish.kernel:
                return None
            return Refusal(Code.NOT_SELECTED, f"{row.id} is for tied tables, and for rules on bits")
        for other in self.of(node) if asked and not wish.kernel else ():
            if other.id != row.id and self.refusal(other, node, wish) is None:
                return Refusal(Code.NOT_SELECTED, f"{other.id} has the bits that are wanted")
        return None

    def _bad_table(self, value: ir.Value, shape: tuple[int, ...], wish: Wish) -> Refusal | None:
        size = math.prod(shape) * 4
        if size < _LARGE_TABLE and not (wish.is_demand or wish.says_bits or wish.tied):
            return Refusal(
                Code.DOES_NOT_PAY,
                f"the table has {size} bytes in float, int8 tables are made from {_LARGE_TABLE} on",
            )
        others = [use.node for use in value.uses() if op_name(use.node) != "Gather"]
        return _shared(value, others[0]) if others or value.is_graph_output() else None

    def _trap(self, row: Kernel, node: ir.Node, context: Context) -> Refusal | None:
        for trap in self.target.traps:
            concerns = any(
                row.id == pattern or (pattern.endswith("*") and row.id.startswith(pattern[:-1]))
                for pattern in trap.kernels
            )
            armed = trap.blocks and concerns and CONDITIONS[trap.condition](node, context) is None
            if armed:
                return Refusal(Code.TRAP, f"{row.id}: {trap.effect}", trap.remedy)
        return None


def _shared(value: ir.Value, other: ir.Node | None) -> Refusal:
    reader = f"{other.name} ({op_name(other)})" if other is not None else "a graph output"
    return Refusal(
        Code.SHARED_WEIGHT,
        f"%{value.name} is also read by {reader}, which needs it in float",
    )


def reads_low(row: Kernel, node: ir.Node) -> tuple[int, ...]:
    """Indices of the activations that a static row reads in low precision."""
    if row.scheme is not Scheme.STATIC:
        return ()
    specs = operand_specs(row, node, None)
    return tuple(
        index
        for index, spec in enumerate(specs)
        if spec is not None and not spec.dynamic and not is_constant(node.inputs[index])
    )

"""Fit the rows of a target to the quantized sites that a model came with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompiler.diagnostics import Code
from qcompiler.ir.edit import constant, has_one_use
from qcompiler.ir.walk import LINEAR, op_name
from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.conditions import CONDITIONS, Context, code_of
from qcompiler.targets.cost import Shapes
from qcompiler.targets.schema import Form, Kernel, Scheme, Target
from qcompiler_passes.decide.rows import Refusal, operand_specs
from qcompiler_passes.planned import bias_operand
from qcompiler_passes.quantized.stored import Stored, dequantize_of, quantize_behind

__all__ = ["Fit", "Fitting"]

# Judged here on the integers, or questions of accuracy, which whoever quantized has answered.
_NOT_ASKED = frozenset(
    {
        "activations-only",
        "constant-bias",
        "constant-table",
        "constant-weight",
        "no-bias-behind",
        "no-mask-in-front",
        "no-normalization-behind",
        "weight-rank-2",
    }
)
_INT32 = float(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A row that computes a site, and what of the graph it takes in.

    Attributes:
        row: The row.
        inputs: Spec of each operand as it is stored, after a change of sign; None is float.
        chain: Nodes behind it that the kernel absorbs.
        quantize: The Q that stores the result, for rows that store it.
        bias: Float bias that has to be rounded to int32, in steps of both scales.
    """

    row: Kernel
    inputs: tuple[QSpec | None, ...]
    chain: tuple[ir.Node, ...] = ()
    quantize: ir.Node | None = None
    bias: npt.NDArray[np.float32] | None = None


class Fitting:
    """Rows of one target, in one form."""

    def __init__(self, target: Target, form: Form, shapes: Shapes) -> None:
        """Fit rows of ``target`` in ``form``; ``shapes`` are those of the sample."""
        self.target = target
        self.form = form
        self.shapes = shapes
        self.native = target.runtime == "onnxruntime"

    def rows(self, node: ir.Node) -> list[Kernel]:
        """Rows of the node's operator that read something stored, in this form."""
        name = op_name(node)
        return [
            row
            for row in self.target.kernels
            if row.op == name and self.form in row.forms and row.scheme is not Scheme.TOKEN
            if row.op != "Gather"  # tables are moved, not computed
        ]

    def best(self, node: ir.Node) -> Fit | list[Refusal]:
        """The row that takes in most: one that stores the result before one that gives floats."""
        fits: list[Fit] = []
        refusals: list[Refusal] = []
        for row in self.rows(node):
            found = self._fit(node, row)
            if isinstance(found, Fit):
                fits.append(found)
            else:
                refusals.append(found)
        if not fits:
            return refusals
        return max(fits, key=lambda fit: (fit.quantize is not None, len(fit.chain)))

    def _fit(self, node: ir.Node, row: Kernel) -> Fit | Refusal:
        specs: list[QSpec | None] = []
        for index, wanted in enumerate(operand_specs(row, node, None)):
            spec = self._operand(node, row, index, wanted)
            if isinstance(spec, Refusal):
                return spec
            specs.append(spec)
        weight = specs[1] if row.op in LINEAR and len(specs) > 1 else None
        refusal = self._condition(node, row, weight)
        if refusal is not None:
            return refusal
        chain = tuple(self._chain(node, row))
        fit = Fit(row, tuple(specs), chain)
        if row.output is not None:
            last = chain[-1] if chain else node
            behind = quantize_behind(last.outputs[0])
            stored = None if behind is None else Stored.of(behind)
            if stored is None:
                return Refusal(Code.CONDITION, f"{row.id} stores its result, here it is float")
            mismatch = self._activation(stored, row.output, row, "its result")
            if mismatch is not None:
                return mismatch
            fit = dataclasses.replace(fit, quantize=behind)
        return self._with_bias(node, fit) if row.op == "Conv" else fit

    def _operand(
        self, node: ir.Node, row: Kernel, index: int, wanted: QSpec | None
    ) -> QSpec | Refusal | None:
        if wanted is None:
            return None
        dq = dequantize_of(node.inputs[index])
        if dq is None:
            return Refusal(Code.NOT_SELECTED, f"the model came with input {index} in float")
        what = f"input {index}"
        source = dq.inputs[0]
        maker = None if source is None else source.producer()
        dynamic = maker is not None and maker.op_type == "DynamicQuantizeLinear"
        if wanted.dynamic != dynamic:
            when = "at run time" if dynamic else "beforehand"
            return Refusal(Code.CONDITION, f"{row.id}: {what} is quantized {when}")
        if dynamic:
            return wanted
        stored = Stored.of(dq)
        if stored is None:
            return Refusal(Code.NOT_CONSTANT, f"the scale of {what} is computed at run time")
        if row.op in LINEAR and index == 1:
            return self._weight(stored, wanted, row)
        if constant(source) is not None:  # its sign is changed with the site
            stored = self._changed(stored, wanted)
        return self._activation(stored, wanted, row, what) or stored.spec()

    def _changed(self, stored: Stored, wanted: QSpec) -> Stored:
        return stored.shifted(wanted.dtype)

    def _activation(self, stored: Stored, wanted: QSpec, row: Kernel, what: str) -> Refusal | None:
        if not stored.per_tensor:
            return Refusal(
                Code.CONDITION, f"{row.id}: {what} has {stored.scale.size} scales, wanted one"
            )
        if stored.dtype is not wanted.dtype:
            return Refusal(
                Code.CONDITION,
                f"{row.id}: {what} is stored as {stored.spec()}, wanted {wanted}",
            )
        if wanted.symmetric and not stored.symmetric:
            return Refusal(
                Code.CONDITION,
                f"{row.id}: {what} has zero point {int(stored.zero_point)}, {self.target.name}"
                f" takes {stored.middle}",
            )
        return None

    def _weight(self, stored: Stored, wanted: QSpec, row: Kernel) -> QSpec | Refusal:
        tensor = stored.tensor()
        if tensor is None:
            return Refusal(Code.NOT_CONSTANT, f"{row.id}: the weight is computed at run time")
        found = stored.spec()
        blocks = wanted.granularity is Granularity.BLOCK
        if blocks != (found.granularity is Granularity.BLOCK):
            return Refusal(
                Code.CONDITION, f"{row.id}: the weight is stored as {found}, wanted {wanted}"
            )
        if row.op == "MatMul" and tensor.q.ndim != 2:
            return Refusal(
                Code.CONDITION, f"{row.id}: the weight has rank {tensor.q.ndim}, wanted 2"
            )
        if found.axis is not None and found.axis != wanted.axis:
            return Refusal(
                Code.TRAP,
                f"{row.id}: the scales of the weight are along axis {found.axis},"
                f" right are those along axis {wanted.axis} only",
            )
        if blocks:
            return found
        changed = self._changed(stored, wanted)
        if changed.dtype is not wanted.dtype:
            return Refusal(
                Code.CONDITION, f"{row.id}: the weight is stored as {found}, wanted {wanted}"
            )
        points = changed.zero_point
        if points.any() and not self.native:
            return Refusal(
                Code.CONDITION,
                f"{row.id}: the weight has zero points, {self.target.name} takes 0 only",
            )
        if row.op == "Conv" and points.size > 1 and (points != points[0]).any():
            return Refusal(
                Code.CONDITION, f"{row.id}: the zero points of the filters differ, wanted one"
            )
        bits = self.target.weight_bits
        largest = int(np.abs(tensor.q.astype(np.int32) - stored.middle).max(initial=0))
        if bits is not None and largest > 1 << (bits - 1):
            return Refusal(
                Code.TRAP,
                f"{row.id}: the weight uses 8 bits, with more than {bits} sums of products"
                f" saturate on {self.target.name}",
            )
        return changed.spec()

    def _condition(self, node: ir.Node, row: Kernel, weight: QSpec | None) -> Refusal | None:
        context = Context(self.shapes, self.target, self.form, weight)
        for name in row.conditions:
            if name in _NOT_ASKED:
                continue
            reason = CONDITIONS[name](node, context)
            if reason is not None:
                return Refusal(code_of(name), f"{row.id}: {reason}")
        return None

    def _chain(self, node: ir.Node, row: Kernel) -> Iterator[ir.Node]:
        value = node.outputs[0]
        steps = [("Add",), ("Relu", "Clip")] if node.op_type == "MatMul" else [("Relu", "Clip")]
        for step in steps:
            if not has_one_use(value):
                return
            follower = next(iter(value.uses())).node
            if follower.graph is not node.graph or follower.op_type not in step:
                continue
            if op_name(follower) not in row.fuses or not self._absorbs(follower, value, node, row):
                continue
            yield follower
            value = follower.outputs[0]

    def _absorbs(self, follower: ir.Node, behind: ir.Value, node: ir.Node, row: Kernel) -> bool:
        if follower.op_type == "Add":
            weight = node.inputs[1].shape if node.inputs[1] is not None else None
            channels = weight[-1] if weight is not None else None
            if not isinstance(channels, int):
                return False
            return bias_operand(follower, behind, channels) is not None
        if row.output is None or (row.output.symmetric and self.form is Form.ORT):
            return False
        bounds = follower.inputs[1:]
        return all(value is None or constant(value) is not None for value in bounds)

    def _with_bias(self, node: ir.Node, fit: Fit) -> Fit | Refusal:
        """Check the bias of a convolution: int32 in steps of both scales, or what rounds to it."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            return fit
        x, w = (dequantize_of(node.inputs[index]) for index in (0, 1))
        x_stored = None if x is None else Stored.of(x)
        w_stored = None if w is None else Stored.of(w)
        assert x_stored is not None, "the operand was judged before"
        assert w_stored is not None, "the weight was judged before"
        steps = x_stored.scale * w_stored.scale.reshape(-1)
        dq = dequantize_of(value)
        stored = None if dq is None else Stored.of(dq)
        tensor = None if stored is None else stored.tensor()
        floats = constant(value) if tensor is None else tensor.dequantize()
        if floats is None:
            return Refusal(Code.NOT_CONSTANT, f"{fit.row.id}: the bias is computed at run time")
        if not self.native:
            return fit
        if stored is not None and stored.dtype is ir.DataType.INT32 and _close(stored, steps):
            return fit
        floats = np.asarray(floats, np.float32)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            largest = np.abs(floats.astype(np.float64) / steps.astype(np.float64)).max(initial=0.0)
        if not largest < _INT32:
            return Refusal(
                Code.CONDITION, f"{fit.row.id}: the bias does not fit int32 in steps of both scales"
            )
        return dataclasses.replace(fit, bias=floats)


def _close(stored: Stored, steps: npt.NDArray[np.float32]) -> bool:
    """Whether a bias is stored in these steps, up to the rounding of their product."""
    if stored.zero_point.any() or stored.scale.size not in (1, steps.size):
        return False
    return bool(np.allclose(stored.scale.reshape(-1), steps, rtol=1e-5, atol=0.0))

"""Which type of static activations a compile uses: one of those that the target's rows take."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.schemes import Granularity, QSpec
from qcompiler.targets.schema import WEIGHTED, Form, Kernel, Scheme, Target

__all__ = ["activation_spec", "activation_specs", "form_for", "offered_activations", "weight_index"]

AUTO = "auto"
_TYPES: Mapping[str, tuple[ir.DataType, ...]] = {
    "int8": (ir.DataType.INT8, ir.DataType.UINT8),
    "int16": (ir.DataType.INT16, ir.DataType.UINT16),
    "fp8-e4m3": (ir.DataType.FLOAT8E4M3FN,),
    "fp8-e5m2": (ir.DataType.FLOAT8E5M2,),
}


def weight_index(row: Kernel) -> int | None:
    """Which input of the row is the constant one; None when all are activations."""
    for index, spec in enumerate(row.inputs):
        if spec is not None and spec.granularity in (Granularity.CHANNEL, Granularity.BLOCK):
            return index
    return 1 if row.op in WEIGHTED else None


def activation_specs(row: Kernel) -> list[QSpec]:
    """What the row takes and gives in low precision, besides its weight."""
    weight = weight_index(row)
    specs = [spec for index, spec in enumerate(row.inputs) if index != weight]
    return [spec for spec in (*specs, row.output) if spec is not None]


def activation_spec(target: Target, form: Form, wanted: str) -> QSpec | None:
    """How a compile stores static activations: as the first static row that fits wants them.

    A graph has one such spec, since the placement knows two sides of a tensor. None when no row
    of the form fits.

    Args:
        target: Whose rows.
        form: The output form.
        wanted: ``auto``, which passes over rows that are references only, or a type by its name in
            a recipe.
    """
    for row in target.kernels:
        if row.scheme is not Scheme.STATIC or form not in row.forms:
            continue
        if wanted == AUTO and row.reference:
            continue
        for spec in activation_specs(row):
            if wanted == AUTO or spec.dtype in _TYPES[wanted]:
                return spec
    return None


def offered_activations(target: Target, form: Form) -> tuple[str, ...]:
    """The types by name that static rows of the form take."""
    return tuple(name for name in _TYPES if activation_spec(target, form, name) is not None)


def form_for(target: Target, wanted: str) -> Form:
    """The target's own form, unless only the other has rows with the wanted activations."""
    forms = (target.form, *(form for form in Form if form is not target.form))
    found = (form for form in forms if activation_spec(target, form, wanted) is not None)
    return next(found, target.form)

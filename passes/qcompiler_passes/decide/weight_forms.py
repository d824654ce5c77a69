"""What weights cost that the runtime has no kernel for as they are filed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.numerics.nbits import NBitsLayout, nbits_layout, stored_bytes
from qcompiler.targets.cost import Shapes, shape_of
from qcompiler.targets.schema import Form, Scheme
from qcompiler_passes.decide.cut import Solution
from qcompiler_passes.decide.units import Unit

__all__ = ["weight_forms"]


def weight_forms(
    units: Sequence[Unit], solution: Solution, shapes: Shapes, form: Form
) -> list[Diagnostic]:
    """Tell of weights that become floats, or wider integers, when the model is loaded."""
    floats: list[tuple[str, int, int]] = []  # spec, bytes in the file, bytes in memory
    unpacked: list[tuple[str, int, int]] = []
    shifted: list[tuple[str, int, int]] = []
    for unit in units:
        option = solution.chosen.get(unit.name)
        row, spec = (option.kernel, option.weight) if option is not None else (None, None)
        if row is None or spec is None or row.scheme is not Scheme.WEIGHT or row.op != "MatMul":
            continue
        shape = shape_of(unit.head.inputs[1], shapes)
        assert shape is not None, "the row has looked at it"
        matrix, size = (shape[0], shape[1]), shape[0] * shape[1]
        filed = stored_bytes(spec, matrix)
        layout = nbits_layout(spec)
        if spec.float_zero and not row.reference:
            shifted.append((str(spec), filed, filed))
        if row.reference:
            floats.append((str(spec), filed, 4 * size))
        elif form is Form.ORT and isinstance(layout, NBitsLayout):
            if layout.is_native and spec.scales is None:
                continue
            wide = stored_bytes(dataclasses.replace(spec, scales=None), matrix)
            unpacked.append((str(spec), filed, wide + size * (layout.bits - spec.width) // 8))
    return [
        *_tell(Code.FLOAT_WEIGHTS, "become floats when the model is loaded", floats),
        *_tell(Code.FLOAT_ZERO_POINTS, "have float zero points", shifted),
        *_tell(Code.UNPACKED_WEIGHTS, "are unpacked when the model is loaded", unpacked),
    ]


def _tell(code: Code, what: str, found: Sequence[tuple[str, int, int]]) -> list[Diagnostic]:
    if not found:
        return []
    specs = ", ".join(sorted({spec for spec, _, _ in found}))
    filed, held = sum(item[1] for item in found), sum(item[2] for item in found)
    sizes = f"{filed / 1e6:.1f} MB in the file, {held / 1e6:.1f} MB in memory"
    message = f"{len(found)} weights {what}: {sizes}"
    values = {"weights": len(found), "file_bytes": filed, "memory_bytes": held}
    return [Diagnostic(code, specs, message, values=values)]

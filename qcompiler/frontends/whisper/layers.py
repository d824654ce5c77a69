"""Layers that encoder and decoder have in common."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcompiler.frontends.decoder.emitter import Dims
from qcompiler.frontends.decoder.writer import ACTIVATIONS, Writer
from qcompiler.frontends.whisper.geometry import Geometry
from qcompiler.ir.lazy import Stored, View

__all__ = ["BATCH", "Layers"]

BATCH = "batch"
_EPSILON = 1e-5  # torch's default, which the configuration does not name


class Layers(Writer):
    """Linear layers, norms and attention on values ``[batch, length, width]``.

    Attributes:
        geometry: Sizes.
        length: Name or number of the second axis.
    """

    def __init__(
        self, geometry: Geometry, weights: Mapping[str, Stored], source: str, length: str | int
    ) -> None:
        super().__init__(weights, source, {})
        self.geometry = geometry
        self.length = length

    def _shape(self, width: int) -> Dims:
        return (BATCH, self.length, width)

    def _linear(self, x: ir.Value, module: str, widths: tuple[int, int]) -> ir.Value:
        """MatMul, and Add where the checkpoint has a bias; ``widths`` in and out."""
        stored = self._stored(f"{module}.weight", (widths[1], widths[0]))
        weight = self._constant(View(stored, transposed=True))
        shape = self._shape(widths[1])
        y = self.emit.op("MatMul", [x, weight], f"{module}/MatMul", shape, module=module)
        if f"{module}.bias" not in self.weights:
            return y
        bias = self._constant(View(self._stored(f"{module}.bias", (widths[1],))))
        return self.emit.op("Add", [y, bias], f"{module}/Add", shape, module=module)

    def _norm(self, x: ir.Value, module: str, output: str = "") -> ir.Value:
        width = self.geometry.width
        parts = [
            self._constant(View(self._stored(f"{module}.{part}", (width,))))
            for part in ("weight", "bias")
        ]
        return self.emit.op(
            "LayerNormalization",
            [x, *parts],
            f"{module}/LayerNormalization",
            self._shape(width),
            attributes={"axis": -1, "epsilon": _EPSILON},
            module=module,
            output=output,
        )

    def _residual(self, x: ir.Value, added: ir.Value, layer: str, part: str) -> ir.Value:
        shape = self._shape(self.geometry.width)
        return self.emit.op("Add", [x, added], f"{layer}/add_{part}", shape, module=layer)

    def _mlp(self, x: ir.Value, layer: str, inner: int) -> ir.Value:
        """The residual branch of the MLP, norm included, added to ``x``."""
        width = self.geometry.width
        y = self._linear(self._norm(x, f"{layer}.final_layer_norm"), f"{layer}.fc1", (width, inner))
        op_type, domain, attributes = ACTIVATIONS[self.geometry.activation]
        y = self.emit.op(
            op_type,
            [y],
            f"{layer}/{op_type}",
            self._shape(inner),
            domain=domain,
            attributes=attributes,
            module=layer,
        )
        return self._residual(x, self._linear(y, f"{layer}.fc2", (inner, width)), layer, "mlp")

    def _apart(self, x: ir.Value, module: str, heads: int, output: str = "") -> ir.Value:
        """``[batch, length, width]`` to ``[batch, heads, length, width / heads]``."""
        size = self.geometry.width // heads
        split = self.emit.op(
            "Reshape",
            [x, self.emit.integers([0, 0, heads, size])],
            f"{module}/Reshape",
            (BATCH, self.length, heads, size),
            module=module,
        )
        shape = (BATCH, heads, self.length, size)
        return self._swapped(split, f"{module}/Transpose", shape, module, output)

    def _swapped(
        self, x: ir.Value, name: str, shape: Dims, module: str, output: str = ""
    ) -> ir.Value:
        return self.emit.op(
            "Transpose",
            [x],
            name,
            shape,
            attributes={"perm": [0, 2, 1, 3]},
            module=module,
            output=output,
        )
